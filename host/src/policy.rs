//! What this host runs at all: which signatures it asks for, and how much a deployment may allow itself. In: a deployment. Out: why it
//! is not run here, or nothing. Pure. Never: trusts what the deployment says of itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use nkeys::KeyPair;
use serde::{Deserialize, Serialize};

use crate::registry::Deployment;
use crate::sandbox::Digest;
use crate::settings::Settings;

/// Who vouches for a module under a handler's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// The public nkey (ed25519) of who signed.
    pub by: String,
    /// The signature over `signed_text`, base64.
    pub signature: String,
}

/// What a host asks of deployments.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Public nkeys; where there are any, one of them must have signed.
    pub trusted: Vec<String>,
    /// The most that a deployment may set, by the setting's name.
    pub ceilings: Vec<(String, u64)>,
}

/// What cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A host that asks for signatures got none.
    #[error("it is not signed, and this host runs signed modules only; hint: deploy it with --sign-with SEED-FILE")]
    Unsigned,
    /// Signed by somebody else.
    #[error(
        "it is signed by {0}, whom this host does not trust; hint: sign with another key, or have the host trust this one"
    )]
    Stranger(String),
    /// The signature is not one of this module under this name.
    #[error("its signature is not one of this module under this name; hint: sign and deploy it again")]
    Forged,
    /// More than the host allows.
    #[error(
        "setting {name} is {value}, and this host allows {ceiling} at most; hint: lower it with --set {name}={ceiling}"
    )]
    TooMuch {
        /// The setting.
        name: String,
        /// As deployed.
        value: u64,
        /// The host's own limit.
        ceiling: u64,
    },
    /// The host's own configuration is wrong.
    #[error("{0}")]
    Configuration(String),
}

/// What is signed: a module's digest under one name, so that it can be deployed under no other.
#[must_use]
pub fn signed_text(handler: &str, digest: Digest) -> String {
    format!("millstream deployment 1\n{handler}\n{digest}\n")
}

/// Signs with the seed of an nkey.
///
/// # Errors
/// A seed that is none.
pub fn sign(seed: &str, handler: &str, digest: Digest) -> Result<Signature, Error> {
    let bad = |error: nkeys::error::Error| Error::Configuration(format!("the seed is not one of an nkey: {error}"));
    let pair = KeyPair::from_seed(seed.trim()).map_err(bad)?;
    let signature = pair.sign(signed_text(handler, digest).as_bytes()).map_err(bad)?;
    Ok(Signature { by: pair.public_key(), signature: BASE64.encode(signature) })
}

impl Policy {
    /// A policy from a command line: public nkeys, and `name=value` pairs of numeric settings.
    ///
    /// # Errors
    /// Names what is no key, no setting or no number.
    pub fn new(trusted: Vec<String>, ceilings: &[String]) -> Result<Self, Error> {
        for key in &trusted {
            KeyPair::from_public_key(key)
                .map_err(|error| Error::Configuration(format!("`{key}` is not a public nkey: {error}")))?;
        }
        let known = serde_json::to_value(Settings::default()).unwrap_or_default();
        let pair = |pair: &String| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value =
                value.parse().map_err(|_| Error::Configuration(format!("ceiling `{pair}` is not name=number")))?;
            match setting(&known, name) {
                Some(_) => Ok((name.to_owned(), value)),
                None => {
                    Err(Error::Configuration(format!("ceiling `{pair}`: there is no setting `{name}` with a number")))
                }
            }
        };
        Ok(Self { trusted, ceilings: ceilings.iter().map(pair).collect::<Result<_, _>>()? })
    }

    /// Whether this host runs it.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, handler: &str, deployment: &Deployment) -> Result<(), Error> {
        if !self.trusted.is_empty() {
            self.check_signature(handler, deployment)?;
        }
        let settings = serde_json::to_value(&deployment.settings).unwrap_or_default();
        for (name, ceiling) in &self.ceilings {
            match setting(&settings, name) {
                // Zero is no bound at all for those that can be zero.
                Some(value) if value > *ceiling || (value == 0 && name.starts_with("throttle")) => {
                    return Err(Error::TooMuch { name: name.clone(), value, ceiling: *ceiling });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check_signature(&self, handler: &str, deployment: &Deployment) -> Result<(), Error> {
        let signature = deployment.signature.as_ref().ok_or(Error::Unsigned)?;
        if !self.trusted.contains(&signature.by) {
            return Err(Error::Stranger(signature.by.clone()));
        }
        let bytes = BASE64.decode(&signature.signature).map_err(|_| Error::Forged)?;
        let key = KeyPair::from_public_key(&signature.by).map_err(|_| Error::Forged)?;
        key.verify(signed_text(handler, deployment.digest).as_bytes(), &bytes).map_err(|_| Error::Forged)
    }
}

/// A number among the settings; `limits.memory_bytes` reaches inside.
fn setting(settings: &serde_json::Value, name: &str) -> Option<u64> {
    name.split('.').try_fold(settings, |place, part| place.get(part))?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Desired;

    fn deployment(signature: Option<Signature>) -> Deployment {
        Deployment {
            digest: Digest([7; 32]),
            label: String::new(),
            subjects: Vec::new(),
            settings: Settings::default(),
            desired: Desired::Running,
            note: String::new(),
            signature,
        }
    }

    #[test]
    fn a_signature_counts_for_one_module_under_one_name_by_a_key_that_is_trusted() {
        let (ours, theirs) = (KeyPair::new_user(), KeyPair::new_user());
        let (ours_seed, theirs_seed) = (ours.seed().unwrap(), theirs.seed().unwrap());
        let policy = Policy::new(vec![ours.public_key()], &[]).unwrap();
        let signed = |seed: &str, handler, digest| deployment(Some(sign(seed, handler, Digest(digest)).unwrap()));
        assert_eq!(policy.check("spend", &signed(&ours_seed, "spend", [7; 32])), Ok(()));
        assert_eq!(policy.check("spend", &deployment(None)), Err(Error::Unsigned));
        let stranger = Error::Stranger(theirs.public_key());
        assert_eq!(policy.check("spend", &signed(&theirs_seed, "spend", [7; 32])), Err(stranger));
        assert_eq!(policy.check("spend", &signed(&ours_seed, "other", [7; 32])), Err(Error::Forged));
        assert_eq!(policy.check("spend", &signed(&ours_seed, "spend", [8; 32])), Err(Error::Forged));
        let mut borrowed = sign(&theirs_seed, "spend", Digest([7; 32])).unwrap();
        borrowed.by = ours.public_key();
        assert_eq!(policy.check("spend", &deployment(Some(borrowed))), Err(Error::Forged));
        assert_eq!(Policy::default().check("spend", &deployment(None)), Ok(()), "nobody asks for one");
    }

    #[test]
    fn a_deployment_gets_no_more_than_the_host_allows() {
        let policy = Policy::new(Vec::new(), &["limits.memory_bytes=1000".to_owned()]).unwrap();
        let refused = policy.check("spend", &deployment(None)).unwrap_err();
        let expected = Error::TooMuch { name: "limits.memory_bytes".to_owned(), value: 256 << 20, ceiling: 1000 };
        assert_eq!(refused, expected);
        let mut modest = deployment(None);
        modest.settings.limits.memory_bytes = 1000;
        assert_eq!(policy.check("spend", &modest), Ok(()));
    }

    #[test]
    fn a_policy_that_cannot_be_is_named() {
        for (ceiling, said) in [
            ("limits.memory=1", "there is no setting `limits.memory` with a number"),
            ("streams=1", "there is no setting `streams` with a number"),
            ("batch_events", "is not name=number"),
            ("batch_events=many", "is not name=number"),
        ] {
            let error = Policy::new(Vec::new(), &[ceiling.to_owned()]).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        assert!(
            Policy::new(vec!["UABC".to_owned()], &[]).unwrap_err().to_string().contains("`UABC` is not a public nkey")
        );
    }
}
