//! `hash-password`: standard input to a hash for the policy. The password is wiped from memory and echoed nowhere.

use std::io::{BufRead, IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::complain;

/// Longest password an MQTT CONNECT can carry.
const PASSWORD_BYTES_MAX: u64 = 65_535;

pub(super) fn hash(out: &mut impl Write) -> u8 {
    let password = match read_line() {
        Ok(password) => password,
        Err(error) => return complain(format_args!("standard input: {error}")),
    };
    if password.is_empty() {
        return complain(format_args!("the password on standard input is empty"));
    }
    if password.len() as u64 > PASSWORD_BYTES_MAX {
        return complain(format_args!(
            "the password is longer than {PASSWORD_BYTES_MAX} bytes"
        ));
    }
    match sluice_policy::hash_password(&password) {
        Some(hash) => {
            let _ = writeln!(out, "{hash}");
            0
        }
        None => complain(format_args!("the system gives no randomness for a salt")),
    }
}

/// The first line, without its end; typed without echo on a terminal.
fn read_line() -> std::io::Result<Zeroizing<Vec<u8>>> {
    let stdin = std::io::stdin();
    let _quiet = stdin.is_terminal().then(Quiet::begin);
    // Room for all of it at once: growing would leave copies behind.
    let mut line = Zeroizing::new(Vec::with_capacity(PASSWORD_BYTES_MAX as usize + 3));
    stdin
        .lock()
        .take(PASSWORD_BYTES_MAX + 2)
        .read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    }
    Ok(line)
}

/// The terminal does not echo while this lives.
struct Quiet {
    before: Option<rustix::termios::Termios>,
}

impl Quiet {
    fn begin() -> Self {
        let _ = write!(std::io::stderr(), "Password: ");
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).ok();
        if let Some(before) = &before {
            let mut quiet = before.clone();
            quiet.local_modes.remove(LocalModes::ECHO);
            let _ = tcsetattr(&stdin, OptionalActions::Now, &quiet);
        }
        Self { before }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
        let _ = writeln!(std::io::stderr());
    }
}
