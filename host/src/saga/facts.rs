//! What a saga's module says of itself in `describe`. In: the `extra` JSON. Out: the facts, or what is missing. Pure.
//! Never: assumes a policy for late events; a module that names none is refused.

use millstream_saga::Late;
use serde::Deserialize;

/// The facts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Facts {
    /// What becomes of an event for an instance that is over, or was never begun.
    pub late: Late,
    /// Subjects it may send to, wildcards allowed.
    pub sends: Vec<String>,
    /// It keeps no instances.
    #[serde(default)]
    pub stateless: bool,
    /// How long an instance that is over stays in the bucket, seconds.
    pub keep_completed_seconds: u64,
}

/// A description that no saga can be run by.
#[derive(Debug, thiserror::Error)]
#[error("the module calls itself a saga, but its description does not say how: {0}")]
pub struct Error(#[from] serde_json::Error);

#[derive(Deserialize)]
struct Extra {
    saga: Facts,
}

impl Facts {
    /// Reads the `extra` field of a description.
    ///
    /// # Errors
    /// Names what is missing.
    pub fn parse(extra: &str) -> Result<Self, Error> {
        let Extra { saga } = serde_json::from_str(extra)?;
        Ok(saga)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_sdk_writes_is_read() {
        let extra =
            r#"{"sdk":"x","saga":{"late":"park","sends":["a.*"],"stateless":false,"keep_completed_seconds":60}}"#;
        let facts = Facts::parse(extra).unwrap();
        let expected =
            Facts { late: Late::Park, sends: vec!["a.*".into()], stateless: false, keep_completed_seconds: 60 };
        assert_eq!(facts, expected);
    }

    #[test]
    fn a_policy_is_never_assumed() {
        for (extra, missing) in [
            ("", "EOF"),
            (r#"{"sdk":"x"}"#, "missing field `saga`"),
            (r#"{"saga":{"sends":[],"keep_completed_seconds":0}}"#, "missing field `late`"),
            (r#"{"saga":{"late":"drop","sends":[],"keep_completed_seconds":0}}"#, "unknown variant `drop`"),
        ] {
            let error = Facts::parse(extra).unwrap_err().to_string();
            assert!(error.contains(missing), "{extra}: {error}");
        }
    }
}
