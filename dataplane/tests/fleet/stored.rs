//! A state directory of an earlier version, which took for a password hash what has text before it: the node starts from
//! it, and lets in by no password whoever it says is locked.

use super::{Device, start};

const GENERATION: &[u8] = include_bytes!("../stored/generation");
const NODE: &[u8] = include_bytes!("../stored/node");

/// Nothing listens at the upstream's address: who has logged in hears so.
const SERVER_UNAVAILABLE: u8 = 3;
const BAD_CREDENTIALS: u8 = 4;

#[test]
fn a_stored_locked_account_is_locked_and_named_and_the_others_log_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state");
    std::fs::create_dir(&state).expect("made");
    std::fs::write(state.join("generation"), GENERATION).expect("written");
    std::fs::write(state.join("node"), NODE).expect("written");
    // Port 0 is nobody's: the control plane stays away.
    let mut running = start(folder.path(), "http://127.0.0.1:0", &["--shards", "1"]);
    running.wait_for("/readyz", |answer| answer.status == 200);
    let port = running.listener("devices");
    let login = |user: &str| Device::connect(port, user, Some((user, "secret"))).connack();
    assert_eq!(login("good"), SERVER_UNAVAILABLE);
    for user in ["locked", "starred", "line", "spaced", "plus", "nobody"] {
        assert_eq!(login(user), BAD_CREDENTIALS, "{user}");
        if user != "nobody" {
            let line = running.wait_log(&format!("user `{user}` cannot log in"));
            assert!(line.contains("WARN") && !line.contains("$7$101$"), "{line}");
        }
    }
}
