//! What the connection is made of. In: flags, environment and a context of the nats command line. Out: all of it
//! merged. Pure but for two small files. Never: writes them.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Connection, Error};

/// The environment, so that tests have their own.
type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The merged settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) context: Option<String>,
    pub(super) url: Option<String>,
    pub(super) auth: Option<Auth>,
    pub(super) authorities: Option<PathBuf>,
    pub(super) certificate: Option<(PathBuf, PathBuf)>,
    pub(super) tls_first: bool,
    pub(super) inbox_prefix: Option<String>,
}

/// How we prove who we are. The first place that says anything about it says all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Auth {
    Password(String, String),
    Token(String),
    Creds(PathBuf),
    Nkey(PathBuf),
    Jwt(String),
    JwtAndSeed(String, String),
}

impl Settings {
    pub(super) fn resolve(flags: &Connection, environment: Environment<'_>) -> Result<Self, Error> {
        let from_flags = Self::from_connection(flags);
        let from_environment = Self::from_connection(&connection_of(environment));
        if let Some(name) = &flags.context {
            return Ok(from_flags.or(Self::from_context(name, environment)?).or(from_environment));
        }
        let direct = from_flags.or(from_environment);
        let named = environment("NATS_CONTEXT");
        // A selected context is a habit of the user, not a wish: with an address and a way in, it is not even looked at.
        let needed = direct.url.is_none() || direct.auth.is_none();
        let name = named.or_else(|| if needed { selected(environment) } else { None });
        match name {
            Some(name) => Ok(direct.or(Self::from_context(&name, environment)?)),
            None => Ok(direct),
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            context: self.context.or(other.context),
            url: self.url.or(other.url),
            auth: self.auth.or(other.auth),
            authorities: self.authorities.or(other.authorities),
            certificate: self.certificate.or(other.certificate),
            tls_first: self.tls_first || other.tls_first,
            inbox_prefix: self.inbox_prefix.or(other.inbox_prefix),
        }
    }

    fn from_connection(connection: &Connection) -> Self {
        let connection = connection.clone();
        let auth = match (connection.user, connection.password) {
            (Some(user), Some(password)) => Some(Auth::Password(user, password)),
            // So does the nats command line.
            (Some(token), None) => Some(Auth::Token(token)),
            (None, _) => None,
        };
        let auth = auth.or(connection.token.map(Auth::Token)).or(connection.creds.map(Auth::Creds));
        Self {
            url: connection.server,
            auth: auth.or(connection.nkey.map(Auth::Nkey)),
            authorities: connection.tlsca,
            certificate: connection.tlscert.zip(connection.tlskey),
            ..Self::default()
        }
    }

    fn from_context(name: &str, environment: Environment<'_>) -> Result<Self, Error> {
        let problem = |problem: String| Error::Context { name: name.to_owned(), problem };
        if name.is_empty() || name.contains("..") || name.contains(['/', '\\']) {
            return Err(problem("is not a name of a context".to_owned()));
        }
        let folder = folder(environment).ok_or_else(|| problem("cannot be found: HOME is not set".to_owned()))?;
        let path = folder.join("context").join(format!("{name}.json"));
        let text = std::fs::read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => problem(format!("does not exist: no file {}", path.display())),
            _ => problem(format!("cannot be read from {}: {error}", path.display())),
        })?;
        let context: Context =
            serde_json::from_slice(&text).map_err(|error| problem(format!("is not in good order: {error}")))?;
        context.settings(name, environment).map_err(problem)
    }
}

/// A context as the nats command line writes it. Unknown fields, such as the colours of its tables, are nothing to us.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Context {
    url: String,
    socks_proxy: String,
    token: String,
    user: String,
    password: String,
    creds: String,
    nkey: String,
    cert: String,
    key: String,
    ca: String,
    nsc: String,
    jetstream_domain: String,
    jetstream_api_prefix: String,
    inbox_prefix: String,
    user_jwt: String,
    user_seed: String,
    tls_first: bool,
}

impl Context {
    fn settings(self, name: &str, environment: Environment<'_>) -> Result<Settings, String> {
        let unsupported = [
            ("socks_proxy", &self.socks_proxy),
            ("nsc", &self.nsc),
            ("jetstream_domain", &self.jetstream_domain),
            ("jetstream_api_prefix", &self.jetstream_api_prefix),
        ];
        if let Some((field, _)) = unsupported.iter().find(|(_, value)| !value.is_empty()) {
            return Err(format!("sets {field}, which millstream cannot follow"));
        }
        if self.creds.contains("://") {
            return Err(
                "has its credentials in a password manager, which millstream cannot ask; use --creds".to_owned()
            );
        }
        let path = |text: &str| given(text).map(|text| expand(&text, environment));
        let auth = self.auth(&path);
        Ok(Settings {
            context: Some(name.to_owned()),
            url: given(&self.url),
            auth,
            authorities: path(&self.ca),
            certificate: path(&self.cert).zip(path(&self.key)),
            tls_first: self.tls_first,
            inbox_prefix: given(&self.inbox_prefix),
        })
    }

    fn auth(&self, path: &dyn Fn(&str) -> Option<PathBuf>) -> Option<Auth> {
        if let Some(user) = given(&self.user) {
            return Some(Auth::Password(user, self.password.clone()));
        }
        if let Some(creds) = path(&self.creds) {
            return Some(Auth::Creds(creds));
        }
        if let Some(nkey) = path(&self.nkey) {
            return Some(Auth::Nkey(nkey));
        }
        match (given(&self.user_jwt), given(&self.user_seed)) {
            (Some(jwt), Some(seed)) => Some(Auth::JwtAndSeed(jwt, seed)),
            (Some(jwt), None) => Some(Auth::Jwt(jwt)),
            (None, _) => given(&self.token).map(Auth::Token),
        }
    }
}

fn given(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

fn connection_of(environment: Environment<'_>) -> Connection {
    let path = |name| environment(name).map(PathBuf::from);
    Connection {
        server: environment("NATS_URL"),
        context: None,
        creds: path("NATS_CREDS"),
        user: environment("NATS_USER"),
        password: environment("NATS_PASSWORD"),
        token: environment("NATS_TOKEN"),
        nkey: path("NATS_NKEY"),
        tlsca: path("NATS_CA"),
        tlscert: path("NATS_CERT"),
        tlskey: path("NATS_KEY"),
        ..Connection::default()
    }
}

fn folder(environment: Environment<'_>) -> Option<PathBuf> {
    let configured = environment("XDG_CONFIG_HOME").map(PathBuf::from);
    let parent = configured.or_else(|| environment("HOME").map(|home| Path::new(&home).join(".config")))?;
    Some(parent.join("nats"))
}

/// The context that `nats context select` chose.
fn selected(environment: Environment<'_>) -> Option<String> {
    let name = std::fs::read_to_string(folder(environment)?.join("context.txt")).ok()?;
    given(name.trim())
}

/// A path of a context may begin with `~` and hold `$NAME` or `${NAME}`.
fn expand(text: &str, environment: Environment<'_>) -> PathBuf {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        let braced = after.strip_prefix('{').and_then(|after| after.split_once('}'));
        let (name, after) = braced.unwrap_or_else(|| {
            let end = after.find(|letter| !is_name(letter)).unwrap_or(after.len());
            after.split_at_checked(end).unwrap_or((after, ""))
        });
        expanded.push_str(&environment(name).unwrap_or_default());
        rest = after;
    }
    expanded.push_str(rest);
    match (expanded.strip_prefix('~'), environment("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(format!("{home}{rest}")),
        _ => PathBuf::from(expanded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A home with two contexts, of which `work` is selected.
    fn home() -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        let nats = home.path().join(".config/nats");
        std::fs::create_dir_all(nats.join("context")).unwrap();
        std::fs::write(nats.join("context.txt"), "work\n").unwrap();
        let write = |name: &str, text: &str| std::fs::write(nats.join("context").join(name), text).unwrap();
        write(
            "work.json",
            r#"{"description":"", "url":"nats://work", "creds":"~/keys/${TEAM}/w.creds", "ca":"$HOME/ca.pem"}"#,
        );
        write(
            "other.json",
            r#"{"url":"nats://other", "user":"u", "password":"p", "tls_first":true, "inbox_prefix":"_I"}"#,
        );
        write("token.json", r#"{"url":"nats://token", "token":"t"}"#);
        write("jwt.json", r#"{"url":"nats://jwt", "user_jwt":"j", "user_seed":"s"}"#);
        write("proxy.json", r#"{"url":"nats://x", "socks_proxy":"p"}"#);
        write("broken.json", "{");
        home
    }

    fn resolve(flags: Connection, variables: &[(&str, &str)]) -> Result<Settings, Error> {
        let home = home();
        let home_path = home.path().to_str().unwrap().to_owned();
        let environment = |name: &str| match name {
            "HOME" => Some(home_path.clone()),
            "TEAM" => Some("mill".to_owned()),
            _ => variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()),
        };
        let mut settings = Settings::resolve(&flags, &environment)?;
        let strip = |path: &PathBuf| PathBuf::from(path.to_str().unwrap().replace(&home_path, "HOME"));
        settings.authorities = settings.authorities.as_ref().map(strip);
        if let Some(Auth::Creds(path)) = &settings.auth {
            settings.auth = Some(Auth::Creds(strip(path)));
        }
        Ok(settings)
    }

    fn named(context: &str) -> Connection {
        Connection { context: Some(context.into()), ..Connection::default() }
    }

    #[test]
    fn the_selected_context_is_used_when_nothing_is_said() {
        let settings = resolve(Connection::default(), &[]).unwrap();
        assert_eq!(settings.url.as_deref(), Some("nats://work"));
        assert_eq!(settings.auth, Some(Auth::Creds("HOME/keys/mill/w.creds".into())));
        assert_eq!(settings.authorities, Some("HOME/ca.pem".into()));
    }

    #[test]
    fn flags_go_before_a_named_context_and_that_before_the_environment() {
        let url = |flags: Connection, variables: &[(&str, &str)]| resolve(flags, variables).unwrap().url.unwrap();
        let variables = [("NATS_URL", "nats://env"), ("NATS_CONTEXT", "token")];
        assert_eq!(
            url(Connection { context: Some("other".into()), ..Connection::to("nats://flag") }, &variables),
            "nats://flag"
        );
        assert_eq!(url(named("other"), &variables), "nats://other");
        assert_eq!(url(Connection::default(), &variables), "nats://env");
        assert_eq!(url(Connection::default(), &[("NATS_CONTEXT", "token")]), "nats://token");
        let variables = [("NATS_URL", "nats://env"), ("NATS_USER", "just-a-token")];
        let settings = resolve(Connection::default(), &variables).unwrap();
        assert_eq!((settings.auth, settings.authorities), (Some(Auth::Token("just-a-token".into())), None));
    }

    #[test]
    fn each_way_to_prove_oneself_is_read() {
        let auth = |flags| resolve(flags, &[]).unwrap().auth.unwrap();
        assert_eq!(auth(named("other")), Auth::Password("u".into(), "p".into()));
        assert_eq!(auth(named("token")), Auth::Token("t".into()));
        assert_eq!(auth(named("jwt")), Auth::JwtAndSeed("j".into(), "s".into()));
        assert_eq!(auth(Connection { nkey: Some("n".into()), ..named("other") }), Auth::Nkey("n".into()));
        let other = resolve(named("other"), &[]).unwrap();
        assert!(other.tls_first && other.inbox_prefix.as_deref() == Some("_I"));
    }

    #[test]
    fn a_context_that_cannot_be_followed_is_an_error_with_its_name() {
        let table = [
            ("none", "does not exist"),
            ("../x", "is not a name"),
            ("proxy", "socks_proxy"),
            ("broken", "not in good order"),
        ];
        for (name, problem) in table {
            let error = resolve(named(name), &[]).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(problem) && text.contains(name) && error.is_usage(), "{text}");
        }
    }
}
