//! Encrypted connections and users known by a key: everything that the nats command line can be told about them works here, and what is
//! wrong is said. In: certificates made here, and real servers with TLS. Never: a server that also speaks in the clear.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use async_nats::ConnectOptions;
use async_nats::jetstream::{self, stream};
use millstream::server::Server;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};

use crate::harness::{Documents, MILLSTREAM, module, orders, spend, until};

/// An authority with what it vouches for, as files.
struct Papers {
    folder: tempfile::TempDir,
}

impl Papers {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let papers = Self { folder };
        for authority in ["ours", "theirs"] {
            let mut params = CertificateParams::new(Vec::new()).expect("parameters");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
            params.distinguished_name.push(rcgen::DnType::CommonName, authority);
            let issuer =
                CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
            papers.write(&format!("{authority}.pem"), &issuer.pem());
            for (name, purpose) in
                [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
            {
                let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
                params.extended_key_usages = vec![purpose];
                let key = KeyPair::generate().expect("a key");
                let certificate = params.signed_by(&key, &issuer).expect("a certificate");
                papers.write(&format!("{authority}-{name}.pem"), &certificate.pem());
                papers.write(&format!("{authority}-{name}.key"), &key.serialize_pem());
            }
        }
        papers
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("written");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("path").to_owned()
    }

    /// A server with our certificate, that wants one of ours from clients, if `verify`.
    async fn server(&self, verify: bool, more: &str) -> Server {
        let [certificate, key, authority] =
            ["ours-server.pem", "ours-server.key", "ours.pem"].map(|name| self.text(name));
        let extra = format!(
            "tls {{ cert_file: \"{certificate}\", key_file: \"{key}\", ca_file: \"{authority}\", verify: {verify} }}\n{more}"
        );
        Server::builder().extra(extra).start().await.expect("it starts")
    }

    /// Runs the program; each `@name` is one of these files.
    fn run(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        let told = |text: &&str| text.strip_prefix('@').map_or_else(|| (*text).to_owned(), |name| self.text(name));
        let mut command = Command::new(MILLSTREAM);
        command.args(arguments.iter().map(told)).stdin(Stdio::null());
        command.envs(environment.iter().map(|(name, value)| (*name, told(value))));
        command.env("XDG_CONFIG_HOME", self.folder.path()).output().expect("millstream runs")
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str], environment: &[(&str, &str)]) {
        let output = self.run(arguments, environment);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[track_caller]
    fn refused(&self, code: i32, arguments: &[&str], words: &[&str]) {
        let output = self.run(arguments, &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{arguments:?}: {said}");
        }
    }
}

const OURS: [&str; 6] = ["--tlsca", "@ours.pem", "--tlscert", "@ours-client.pem", "--tlskey", "@ours-client.key"];

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_is_deployed_and_runs_over_tls_with_certificates_on_both_sides() {
    let papers = Papers::new();
    let server = papers.server(true, "").await;
    let url = server.url();
    let options = ConnectOptions::new()
        .add_root_certificates(papers.path("ours.pem"))
        .add_client_certificate(papers.path("ours-client.pem"), papers.path("ours-client.key"));
    let jetstream = jetstream::new(options.connect(&url).await.expect("it connects"));
    let subjects = vec!["orders.>".to_owned()];
    let config = stream::Config { name: "ORDERS".to_owned(), subjects, allow_direct: true, ..Default::default() };
    jetstream.create_stream(config).await.expect("a stream");
    let module = module("customer-spend");
    let module = module.to_str().expect("path");
    papers.ok(&[&["--server", &url], &OURS[..], &["deploy", module, "--name", "spend", "--no-wait"]].concat(), &[]);
    let environment = [
        ("NATS_URL", url.as_str()),
        ("NATS_CA", "@ours.pem"),
        ("NATS_CERT", "@ours-client.pem"),
        ("NATS_KEY", "@ours-client.key"),
    ];
    papers.ok(&["list"], &environment);

    let events = orders(0, 50);
    for event in &events {
        jetstream.publish(event.subject.clone(), event.body().into()).await.expect("sent").await.expect("stored");
    }
    let environment = environment.map(|(name, value)| {
        (name, value.strip_prefix('@').map_or_else(|| value.to_owned(), |file| papers.text(file)))
    });
    let mut host = Command::new(MILLSTREAM);
    let mut host =
        host.arg("run").envs(environment).stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("a host");
    let expected = spend(&events);
    until("all documents are there", async || {
        let bucket = jetstream.get_key_value("spend").await.ok()?;
        let mut found = Documents::new();
        for key in expected.keys() {
            let value = bucket.get(key.as_str()).await.ok()??;
            found.insert(key.clone(), String::from_utf8(value.to_vec()).ok()?);
        }
        (found == expected).then_some(())
    })
    .await;
    host.kill().expect("killed");
    host.wait().expect("reaped");

    // A context of the nats command line says the same.
    std::fs::create_dir_all(papers.path("nats/context")).expect("a folder");
    let context = serde_json::json!({ "url": url, "ca": papers.text("ours.pem"),
        "cert": papers.text("ours-client.pem"), "key": papers.text("ours-client.key") });
    papers.write("nats/context/work.json", &context.to_string());
    papers.ok(&["--context", "work", "lag", "spend"], &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_certificates_is_said_with_a_hint() {
    let papers = Papers::new();
    let server = papers.server(true, "").await;
    let (url, list) = (server.url(), ["list"]);
    let at = ["--server", url.as_str()];
    let unknown = [&at[..], &list].concat();
    papers.refused(1, &unknown, &["no TLS connection with", "hint: name the certificate authority with --tlsca"]);
    let wrong = [&at[..], &["--tlsca", "@theirs.pem"], &list].concat();
    papers.refused(1, &wrong, &["no TLS connection with", "--tlsca"]);
    let nobody = [&at[..], &["--tlsca", "@ours.pem"], &list].concat();
    papers.refused(1, &nobody, &["no TLS connection with", "--tlscert"]);
    let stranger = [
        &at[..],
        &["--tlsca", "@ours.pem", "--tlscert", "@theirs-client.pem", "--tlskey", "@theirs-client.key"],
        &list,
    ];
    papers.refused(1, &stranger.concat(), &["no TLS connection with", "--tlscert"]);
    papers.refused(
        2,
        &[&at[..], &["--tlsca", "@none.pem"], &list].concat(),
        &["cannot use certificate authority file"],
    );
    papers.refused(2, &[&at[..], &["--tlscert", "@ours-client.pem"], &list].concat(), &["--tlskey"]);
    assert!(Path::new(&papers.text("ours.pem")).is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_known_by_his_nkey_and_no_other_comes_in() {
    let papers = Papers::new();
    let (ours, theirs) = (nkeys::KeyPair::new_user(), nkeys::KeyPair::new_user());
    for (name, pair) in [("ours.nk", &ours), ("theirs.nk", &theirs)] {
        papers.write(name, &format!("{}\n", pair.seed().expect("a seed")));
    }
    papers.write("none.nk", "not a seed\n");
    let users = format!("authorization {{ users: [ {{ nkey: {} }} ] }}", ours.public_key());
    let server = papers.server(false, &users).await;
    let url = server.url();
    let as_user = |name: &'static str| ["--server", url.as_str(), "--tlsca", "@ours.pem", "--nkey", name, "list"];
    papers.ok(&as_user("@ours.nk"), &[]);
    papers.ok(&["list"], &[("NATS_URL", url.as_str()), ("NATS_CA", "@ours.pem"), ("NATS_NKEY", "@ours.nk")]);
    papers.refused(2, &as_user("@theirs.nk"), &["refused these credentials", "hint: "]);
    papers.refused(2, &["--server", &url, "--tlsca", "@ours.pem", "list"], &["refused these credentials"]);
    papers.refused(2, &as_user("@none.nk"), &["cannot use NKEY seed file", "no line that begins with S"]);
}
