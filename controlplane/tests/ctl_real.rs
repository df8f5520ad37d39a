//! `sluicectl` and the control plane, both as real processes: what an operator does, from the first apply to a restore.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests too

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

/// A running control plane on a free port.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(data_dir: &Path) -> Self {
        Self::start_with(data_dir, &[])
    }

    fn start_with(data_dir: &Path, more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sluice-controlplane"))
            .args([
                "--listen",
                "127.0.0.1:0",
                "--admin",
                "127.0.0.1:0",
                "--log-format",
                "json",
            ])
            .arg("--data-dir")
            .arg(data_dir)
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the control plane starts");
        let mut log = BufReader::new(child.stderr.take().expect("its log"));
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            assert!(
                log.read_line(&mut line).expect("a log") > 0,
                "it ended: {said}"
            );
            said.push_str(&line);
            let Ok(record) = serde_json::from_str::<serde_json::Value>(&line) else {
                continue;
            };
            if record["message"] == "gRPC server is listening" {
                break record["address"].as_str().expect("an address").to_owned();
            }
        };
        // A log that nobody reads would stop the process once the pipe is full.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self {
            child,
            url: format!("http://{address}"),
        }
    }

    /// As if the machine had lost power.
    fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ended");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A control plane, its folder, and a folder for documents.
struct Site {
    server: Server,
    folder: TempDir,
}

struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl Ended {
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }
}

/// Runs the program; what the environment of the tests says is left out.
fn sluicectl(words: &[&str], environment: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicectl"));
    for name in [
        "SLUICE_SERVER",
        "SLUICE_TOKEN",
        "SLUICE_TOKEN_FILE",
        "SLUICE_CA",
    ] {
        command.env_remove(name);
    }
    let output = command
        .args(words)
        .envs(environment.iter().copied())
        .output()
        .expect("sluicectl runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ended {
        code: output.status.code().expect("it ended by itself"),
        out: text(output.stdout),
        err: text(output.stderr),
    }
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        Self {
            server: Server::start(&data),
            folder,
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn restart(&mut self) {
        self.server.kill();
        self.server = Server::start(&self.data());
    }

    /// As the first admin.
    fn run(&self, words: &[&str]) -> Ended {
        let token = self.data().join("admin.token");
        let token = token.to_str().expect("UTF-8");
        sluicectl(
            words,
            &[
                ("SLUICE_SERVER", &self.server.url),
                ("SLUICE_TOKEN_FILE", token),
            ],
        )
    }

    /// The same, which has to end with this code.
    fn expect(&self, code: i32, words: &[&str]) -> Ended {
        let ended = self.run(words);
        assert_eq!(ended.code, code, "{words:?}: {}{}", ended.out, ended.err);
        ended
    }

    fn path(&self, name: &str) -> String {
        self.folder
            .path()
            .join(name)
            .to_str()
            .expect("UTF-8")
            .to_owned()
    }

    /// A document in which ann may, or may not, publish below `site/`.
    fn document(&self, name: &str, decision: &str, extra: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, document(decision, extra)).expect("a file");
        path
    }

    fn released(&self) -> u64 {
        self.expect(0, &["status", "--output", "json"]).json()["released"]
            .as_u64()
            .expect("a number")
    }
}

fn document(decision: &str, extra: &str) -> String {
    format!(
        "\
default: deny
listeners:
  - name: main
    address: 127.0.0.1:1883
    upstream: broker
upstreams:
  - name: broker
    endpoints: [\"tcp://127.0.0.1:1884\"]
groups:
  - name: sensors
users:
  - name: ann
    password_hash: \"{HASH}\"
    groups: [sensors]
rules:
  - name: open
    who: {{ groups: [sensors] }}
    actions: [connect]
    decision: allow
  - name: publish
    who: {{ groups: [sensors] }}
    actions: [publish]
    topics: [\"site/#\"]
    decision: {decision}
{extra}"
    )
}

/// bcrypt of `secret`, low cost: the tests only look whether it is shown.
const HASH: &str = "$2b$04$abcdefghijklmnopqrstuuT2QzTP0zDzMOdwvnT3BYTUXmUlEiqyW";

const EXPLAIN: [&str; 8] = [
    "explain",
    "--user",
    "ann",
    "--output",
    "json",
    "publish",
    "site/7/temperature",
    "--client-id=ann",
];

#[test]
fn c09_c10_a_document_becomes_a_generation_is_released_and_rolled_back() {
    let site = Site::new();
    let (allow, deny) = (
        site.document("a.yaml", "allow", ""),
        site.document("d.yaml", "deny", ""),
    );
    site.expect(6, &EXPLAIN);
    let applied = site.expect(
        0,
        &[
            "apply",
            "-f",
            &allow,
            "--comment",
            "first",
            "--output",
            "json",
        ],
    );
    assert_eq!(applied.json()["generation"]["number"], 1);
    assert_eq!(site.released(), 0, "an apply releases nothing");
    site.expect(0, &["release", "1"]);
    assert_eq!(site.expect(0, &EXPLAIN).json()["decision"], "allow");
    // The same again makes none.
    let again = site
        .expect(0, &["apply", "-f", &allow, "--output", "json"])
        .json();
    assert_eq!(
        (&again["unchanged"], &again["generation"]["number"]),
        (&true.into(), &1.into())
    );
    let same = site.expect(0, &["diff", "-f", &allow]);
    assert!(same.out.contains("no difference"), "{}", same.out);
    let changed = site
        .expect(0, &["diff", "-f", &deny, "--output", "json"])
        .json();
    assert_eq!(changed["summary"]["changed"], 1, "{changed}");
    assert_eq!(changed["rows"][0]["name"], "publish");
    let denied = site
        .expect(0, &["apply", "-f", &deny, "--release", "--output", "json"])
        .json();
    assert_eq!(denied["generation"]["state"], "released");
    assert_eq!(site.expect(0, &EXPLAIN).json()["decision"], "deny");
    // Consumed twice, unknown, and by someone who saw another state.
    site.expect(6, &["release", "1"]);
    site.expect(6, &["release", "99"]);
    site.expect(
        4,
        &[
            "apply",
            "-f",
            &site.document("x.yaml", "allow", "on_deny: close\n"),
            "--expect",
            "1",
        ],
    );
    site.expect(4, &["rollback", "--expect", "1"]);
    let back = site
        .expect(
            0,
            &["rollback", "--comment", "too strict", "--output", "json"],
        )
        .json();
    assert_eq!(
        (
            &back["generation"]["number"],
            &back["generation"]["rollback_of"]
        ),
        (&3.into(), &1.into())
    );
    assert_eq!(site.expect(0, &EXPLAIN).json()["decision"], "allow");
    let between = site.expect(0, &["diff", "1", "3"]);
    assert!(between.out.contains("no difference"), "{}", between.out);
    let history = site.expect(0, &["history", "--output", "json"]).json();
    let states: Vec<_> = history["generations"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|g| g["state"].clone())
        .collect();
    assert_eq!(states, ["released", "superseded", "superseded"]);
    let audit = site.expect(0, &["audit"]);
    assert!(
        audit.out.contains("policy.release") && audit.out.contains("is whole"),
        "{}",
        audit.out
    );
}

#[test]
fn c08_no_output_holds_a_password_hash() {
    let site = Site::new();
    let first = site.document("a.yaml", "allow", "");
    let second = site.path("b.yaml");
    let other = document("allow", "").replace("$2b$04$abc", "$2b$04$bbc");
    std::fs::write(&second, other).expect("a file");
    site.expect(0, &["apply", "-f", &first, "--release"]);
    for words in [
        &["diff", "-f", &second][..],
        &["diff", "-f", &second, "--output", "json"],
        &["apply", "-f", &second, "--release", "--output", "json"],
        &["diff", "1", "2"],
        &["history", "--output", "json"],
        &["audit", "--output", "json"],
        &EXPLAIN,
    ] {
        let ended = site.expect(0, words);
        assert!(
            !ended.out.contains("$2b$") && !ended.err.contains("$2b$"),
            "{words:?}: {}",
            ended.out
        );
    }
}

#[test]
fn c13_what_was_applied_survives_a_kill_and_can_be_released() {
    let mut site = Site::new();
    let allow = site.document("a.yaml", "allow", "");
    site.expect(0, &["apply", "-f", &allow]);
    site.restart();
    assert_eq!(site.released(), 0);
    // There is no node to wait for, and that is not an error.
    let released = site.expect(0, &["release", "1", "--wait", "--output", "json"]);
    assert_eq!(released.json()["wait"]["end"], "settled");
    let again = site.expect(0, &["release", "1", "--wait"]);
    assert!(again.out.contains("active on 0 nodes"), "{}", again.out);
    assert!(site.expect(0, &["nodes"]).out.contains("no nodes"));
    let doctor = site.expect(0, &["doctor"]);
    assert!(
        !doctor.out.contains("FAIL") && !doctor.out.contains("SKIP"),
        "{}",
        doctor.out
    );
    site.expect(6, &["nodes", "nobody"]);
    site.expect(6, &["drain", "nobody"]);
    site.restart();
    assert_eq!(site.released(), 1);
    let deny = site.document("d.yaml", "deny", "");
    site.expect(0, &["apply", "-f", &deny, "--release", "--expect", "1"]);
}

#[test]
fn c14_of_two_who_saw_the_same_state_one_wins() {
    let site = Site::new();
    site.expect(
        0,
        &[
            "apply",
            "-f",
            &site.document("0.yaml", "allow", ""),
            "--release",
        ],
    );
    let documents = [
        site.document("1.yaml", "deny", ""),
        site.document("2.yaml", "allow", "on_deny: close\n"),
    ];
    let mut codes: Vec<i32> = std::thread::scope(|scope| {
        let running: Vec<_> = documents
            .iter()
            .map(|file| {
                let words = ["apply", "-f", file.as_str(), "--expect", "1", "--release"];
                let site = &site;
                scope.spawn(move || site.run(&words).code)
            })
            .collect();
        running
            .into_iter()
            .map(|run| run.join().expect("it ran"))
            .collect()
    });
    codes.sort_unstable();
    assert_eq!(codes, [0, 4]);
    assert_eq!(site.released(), 2);
}

#[test]
fn c17_everything_wrong_is_said_at_once_and_nothing_is_made() {
    let site = Site::new();
    let bad = site.path("bad.yaml");
    std::fs::write(&bad, "default: maybe\nlisteners:\n  - nmae: x\nrulez: []\n").expect("a file");
    let offline = sluicectl(&["validate", "-f", &bad], &[]);
    let online = site.expect(1, &["validate", "-f", &bad]);
    assert_eq!(
        (offline.code, offline.out.lines().count() > 2),
        (1, true),
        "{}",
        offline.out
    );
    assert_eq!(online.out, offline.out);
    let applied = site.expect(1, &["apply", "-f", &bad]);
    assert!(applied.err.starts_with(&offline.out), "{}", applied.err);
    assert_eq!(
        site.expect(0, &["history", "--output", "json"]).json()["newest"],
        0
    );
}

#[test]
fn c22_a_backup_is_restored_and_a_damaged_one_refused() {
    let mut site = Site::new();
    site.expect(
        0,
        &[
            "apply",
            "-f",
            &site.document("a.yaml", "allow", ""),
            "--release",
        ],
    );
    let backup = site.path("b.db");
    site.expect(0, &["backup", "--output", &backup]);
    site.expect(2, &["backup", "--output", &backup]);
    site.expect(
        0,
        &[
            "apply",
            "-f",
            &site.document("d.yaml", "deny", ""),
            "--release",
        ],
    );
    let store = site.expect(0, &["status", "--output", "json"]).json()["store"].clone();
    let data = site.data();
    let data = data.to_str().expect("UTF-8");
    let restore = ["restore", "--input", &backup, "--data-dir", data];
    let forced = [&restore[..], &["--force"]].concat();
    assert_eq!(sluicectl(&forced, &[]).code, 6, "the control plane runs");
    site.server.kill();
    assert_eq!(sluicectl(&restore, &[]).code, 6, "there is a store");
    let damaged = site.path("damaged.db");
    let mut bytes = std::fs::read(&backup).expect("the backup");
    let middle = bytes.len() / 2;
    bytes.truncate(middle);
    std::fs::write(&damaged, bytes).expect("a file");
    let refused = sluicectl(
        &[
            "restore",
            "--input",
            &damaged,
            "--data-dir",
            data,
            "--force",
        ],
        &[],
    );
    assert_eq!(refused.code, 6, "{}", refused.out);
    assert_eq!(
        sluicectl(&["restore", "--input", "/no/such", "--data-dir", data], &[]).code,
        2
    );
    let restored = sluicectl(&forced, &[]);
    assert_eq!(restored.code, 0, "{}", restored.err);
    site.server = Server::start(&site.data());
    assert_eq!(site.released(), 1);
    assert_eq!(site.expect(0, &EXPLAIN).json()["decision"], "allow");
    let now = site.expect(0, &["status", "--output", "json"]).json()["store"].clone();
    assert_ne!(now, store, "a restored store is another one");
}

#[test]
fn a_backup_and_a_running_store_are_examined() {
    let mut site = Site::new();
    let document = site.document("a.yaml", "allow", "");
    site.expect(0, &["apply", "-f", &document, "--release"]);
    let backup = site.path("b.db");
    site.expect(0, &["backup", "--output", &backup]);
    let before = std::fs::read(&backup).expect("the backup");
    let words = ["doctor", "--backup", &backup];
    let good = sluicectl(&words, &[]);
    assert_eq!(good.code, 0, "{}", good.out);
    for part in ["OK    file", "OK    audit", "generation 1 is in force"] {
        assert!(good.out.contains(part), "{part}: {}", good.out);
    }
    assert_eq!(
        std::fs::read(&backup).expect("the backup"),
        before,
        "only looked at"
    );
    assert!(!std::fs::exists(site.path("b.db-wal")).expect("a folder"));
    assert_eq!(sluicectl(&["doctor", "--backup", "/no/such"], &[]).code, 2);
    let running = site.expect(0, &["doctor"]);
    assert!(
        running.out.contains("each follows from the one before"),
        "{}",
        running.out
    );

    // Text that stands in a record of the log, in the backup and in the store.
    let mut bad = before.clone();
    let place = bad
        .windows(14)
        .position(|bytes| bytes == b"policy.release")
        .expect("a record");
    bad[place] = b'P';
    std::fs::write(&backup, &bad).expect("written");
    let broken = sluicectl(&words, &[]);
    assert_eq!(broken.code, 6, "{}", broken.out);
    assert!(broken.out.contains("BROKEN at record"), "{}", broken.out);
    std::fs::write(&backup, &before[..before.len() / 2]).expect("written");
    let cut = sluicectl(&words, &[]);
    assert_eq!(cut.code, 6, "{}", cut.out);
    assert!(cut.out.contains("FAIL  file"), "{}", cut.out);
    site.server.kill();
    let in_use = site.data().join("store.db").display().to_string();
    let in_use = sluicectl(&["doctor", "--backup", &in_use], &[]);
    assert_eq!(in_use.code, 2, "it has a log: {}", in_use.out);
}

#[test]
fn tokens_open_what_their_role_allows_until_they_are_revoked() {
    let site = Site::new();
    let file = site.path("viewer.token");
    let create = [
        "token",
        "create",
        "eve",
        "--role",
        "viewer",
        "--output-file",
        &file,
        "--output",
        "json",
    ];
    let id = site.expect(0, &create).json()["token"]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let secret = std::fs::read_to_string(&file).expect("the token");
    let as_viewer = |words: &[&str]| {
        sluicectl(
            words,
            &[
                ("SLUICE_SERVER", &site.server.url),
                ("SLUICE_TOKEN_FILE", &file),
            ],
        )
    };
    assert_eq!(as_viewer(&["history"]).code, 0);
    let refused = as_viewer(&["rollback", "--expect", "0"]);
    assert_eq!(refused.code, 5, "{}", refused.err);
    assert_eq!(as_viewer(&["audit"]).code, 5);
    site.expect(0, &["token", "revoke", &id]);
    let revoked = as_viewer(&["history"]);
    assert_eq!(revoked.code, 5);
    assert!(!revoked.err.contains(secret.trim()), "{}", revoked.err);
    let list = site.expect(0, &["token", "list"]);
    assert!(
        list.out.contains("revoked") && !list.out.contains(secret.trim()),
        "{}",
        list.out
    );
    // The last admin stays.
    let tokens = site
        .expect(0, &["token", "list", "--output", "json"])
        .json();
    let admin = tokens["tokens"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|token| token["role"] == "admin");
    let admin = admin.expect("an admin")["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    site.expect(6, &["token", "revoke", &admin]);
    let join = site.expect(
        0,
        &["token", "join", "create", "--node", "edge-1", "--print"],
    );
    assert!(join.out.starts_with("slj_"), "a join token");
    assert!(
        site.expect(0, &["token", "join", "list"])
            .out
            .contains("edge-1")
    );
}

/// An authority that signs what the test needs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("signed"))
    }

    /// Writes its certificate; the path.
    fn write(&self, folder: &Path, name: &str) -> String {
        write(folder, name, &self.0.pem())
    }

    /// Writes a certificate for this name and its key; the paths.
    fn sign(&self, folder: &Path, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let cert = params.signed_by(&key, &self.0).expect("signed");
        (
            write(folder, &format!("{name}.pem"), &cert.pem()),
            write(folder, &format!("{name}.key"), &key.serialize_pem()),
        )
    }
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("a file");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn tls_and_mutual_tls_with_what_is_wrong_said_in_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let ca = ours.write(folder.path(), "ca.pem");
    let other_ca = theirs.write(folder.path(), "other-ca.pem");
    let (cert, key) = ours.sign(folder.path(), "control.example");
    let (own_cert, own_key) = ours.sign(folder.path(), "operator");
    let (bad_cert, bad_key) = theirs.sign(folder.path(), "stranger");
    let data = folder.path().join("data");
    let token = data.join("admin.token");
    let token = token.to_str().expect("UTF-8");
    let run = |url: &str, words: &[&str]| {
        let words = [words, &["status"]].concat();
        let environment = [("SLUICE_SERVER", url), ("SLUICE_TOKEN_FILE", token)];
        let ended = sluicectl(&words, &environment);
        (ended.code, format!("{}{}", ended.out, ended.err))
    };
    let trusting = ["--ca", &ca, "--domain", "control.example"];
    let check = |url: &str, cases: &[(&[&str], i32, &str)]| {
        for (words, code, expected) in cases {
            let (ended, said) = run(url, words);
            assert_eq!(ended, *code, "{words:?}: {said}");
            assert!(said.contains(expected), "{words:?}, {expected}: {said}");
        }
    };
    {
        let server = Server::start_with(&data, &["--tls-cert", &cert, "--tls-key", &key]);
        let url = server.url.replace("http:", "https:");
        check(
            &url,
            &[
                (&trusting, 0, "store"),
                (&[], 2, "--ca"),
                (&["--ca", &ca], 5, "say it with --domain"),
                (
                    &["--ca", &other_ca, "--domain", "control.example"],
                    5,
                    "none of the authorities in --ca",
                ),
            ],
        );
        // Without TLS there is an answer too, and not one that hangs.
        let (code, _) = run(&server.url, &[]);
        assert_eq!(code, 5);
    }
    let mutual = [
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
        "--tls-client-ca",
        &ca,
    ];
    let server = Server::start_with(&data, &mutual);
    let url = server.url.replace("http:", "https:");
    let with = |cert, key| [&trusting[..], &["--cert", cert, "--key", key]].concat();
    check(
        &url,
        &[
            (&with(&own_cert, &own_key), 0, "store"),
            (&trusting, 5, "wants to see a certificate"),
            (&with(&bad_cert, &bad_key), 5, "in --cert"),
            (&with(&own_cert, &bad_key), 2, "--cert"),
        ],
    );
}
