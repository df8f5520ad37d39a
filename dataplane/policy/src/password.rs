//! Stored passwords: argon2id (PHC string), bcrypt, and the `$7$` PBKDF2-SHA512 of Mosquitto password files.
//!
//! Verifying costs milliseconds of CPU by design: call it on a pool, never on a shard. Nothing here prints a hash. Costs
//! are bounded when a document is read, so that a document cannot turn each CONNECT into minutes of work.

use std::fmt;

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Block, Params};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use subtle::ConstantTimeEq;

/// Most memory one argon2id verification may take, in KiB (64 MiB, the second recommendation of RFC 9106).
pub const ARGON2_MEMORY_KIB_MAX: u32 = 64 * 1024;
/// Most passes of argon2id.
pub const ARGON2_PASSES_MAX: u32 = 10;
/// Most lanes of argon2id.
pub const ARGON2_LANES_MAX: u32 = 16;
/// Highest bcrypt cost; each step doubles the time, and 14 is about a second.
pub const BCRYPT_COST_MAX: u32 = 14;
/// Most PBKDF2 rounds.
pub const PBKDF2_ROUNDS_MAX: u32 = 1_000_000;

/// What `hash_password` uses: the first recommendation of OWASP for argon2id (19 MiB, 2 passes, 1 lane).
const NEW_HASH_MEMORY_KIB: u32 = 19 * 1024;
const NEW_HASH_PASSES: u32 = 2;

/// Allocations above 32 MiB are always pages of their own, given back to the system when freed. Smaller ones glibc keeps
/// in the arena of the thread once one was freed: 200 logins left 230 MiB resident for each hashing thread. Room that is
/// reserved and never touched costs nothing.
const ALWAYS_GIVEN_BACK_BYTES: usize = 33 << 20;

/// A stored password verifier. Opaque; `Debug` does not print it.
#[derive(Clone)]
pub struct Verifier {
    digest: [u8; 32],
    method: Method,
}

#[derive(Clone)]
enum Method {
    Argon2id {
        cost: Cost,
        salt: Box<[u8]>,
        hash: Box<[u8]>,
    },
    Bcrypt {
        cost: u32,
        text: Box<str>,
    },
    Pbkdf2Sha512 {
        rounds: u32,
        salt: Box<[u8]>,
        hash: Box<[u8]>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// What verifying against a hash costs; hashes of one kind are verified in the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Pbkdf2Sha512 {
        rounds: u32,
        hash_bytes: usize,
    },
    Bcrypt {
        cost: u32,
    },
    Argon2id {
        memory_kib: u32,
        passes: u32,
        lanes: u32,
    },
}

/// Why a text is not a password hash that can be used. Never contains the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashError {
    /// It looks like none of the formats, probably a password in plain text.
    NotAHash,
    /// There is a hash, and something else before it, after it or in it.
    NotOnlyAHash(&'static str),
    /// The format is known but not supported.
    Unsupported(&'static str),
    /// The format is right, the contents are not.
    Malformed {
        /// Which format.
        format: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Verifying would cost more than allowed.
    TooCostly {
        /// Which parameter.
        what: &'static str,
        /// Its bound.
        max: u32,
    },
}

impl fmt::Display for HashError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAHash => f.write_str(
                "not a password hash; never write the password itself here: store the output of \
                 `sluice-dataplane hash-password` (argon2id), a bcrypt hash, or a `$7$` hash of mosquitto_passwd",
            ),
            Self::NotOnlyAHash(what) => f.write_str(what),
            Self::Unsupported(what) => write!(f, "{what} hashes are not supported; use argon2id, bcrypt or `$7$`"),
            Self::Malformed { format, what } => write!(f, "broken {format} hash: {what}"),
            Self::TooCostly { what, max } => write!(f, "{what} is out of range; at most {max}"),
        }
    }
}

impl std::error::Error for HashError {}

impl HashError {
    /// True exactly for what an earlier version may have stored as a hash. It looked for the format behind the first `$`,
    /// so that a locked account (`!$7$...`) was open.
    pub(crate) fn may_be_stored(&self) -> bool {
        match self {
            Self::NotOnlyAHash(_) | Self::Malformed { .. } => true,
            Self::NotAHash | Self::Unsupported(_) | Self::TooCostly { .. } => false,
        }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Verifier").field(&self.kind()).finish()
    }
}

impl Verifier {
    /// Reads a stored hash.
    pub fn parse(text: &str) -> Result<Self, HashError> {
        if let Some(what) = besides_a_hash(text) {
            return Err(HashError::NotOnlyAHash(what));
        }
        let method = match text.split('$').nth(1) {
            Some("argon2id") => argon2id(text)?,
            Some("argon2i" | "argon2d") => {
                return Err(HashError::Unsupported("argon2i and argon2d"));
            }
            Some("2a" | "2b" | "2x" | "2y") => bcrypt(text)?,
            Some("7") => mosquitto(text)?,
            Some("6") => return Err(HashError::Unsupported("salted SHA-512 (`$6$`)")),
            Some("5") => return Err(HashError::Unsupported("salted SHA-256 (`$5$`)")),
            Some("1") => return Err(HashError::Unsupported("MD5 (`$1$`)")),
            Some(_) | None => return Err(HashError::NotAHash),
        };
        Ok(Self {
            digest: digest(text),
            method,
        })
    }

    /// Is this the password? Milliseconds of CPU; the comparison takes the same time wherever the two differ.
    pub fn verify(&self, password: &[u8]) -> bool {
        match &self.method {
            Method::Argon2id { cost, salt, hash } => {
                let mut found = vec![0; hash.len()];
                argon2_into(*cost, password, salt, &mut found) && bool::from(found.ct_eq(hash))
            }
            Method::Bcrypt { text, .. } => bcrypt::verify(password, text).unwrap_or(false),
            Method::Pbkdf2Sha512 { rounds, salt, hash } => {
                let mut found = vec![0; hash.len()];
                pbkdf2::pbkdf2_hmac::<sha2::Sha512>(password, salt, *rounds, &mut found);
                bool::from(found.ct_eq(hash))
            }
        }
    }

    /// A verifier nobody has the password of, for when a document has no user. [`crate::Snapshot::dummy_verifier`] is
    /// the one to run for an unknown user: it costs what a wrong password of that document costs.
    pub fn dummy() -> Self {
        Self::dummy_of(Kind::Argon2id {
            memory_kib: NEW_HASH_MEMORY_KIB,
            passes: NEW_HASH_PASSES,
            lanes: 1,
        })
    }

    pub(crate) fn dummy_of(kind: Kind) -> Self {
        // A hash of all zeros: no password is known to give it, and the caller refuses whatever the answer is.
        let salt: Box<[u8]> = (*b"sluice-no-user--").into();
        let method = match kind {
            Kind::Argon2id {
                memory_kib,
                passes,
                lanes,
            } => Method::Argon2id {
                cost: Cost {
                    memory_kib,
                    passes,
                    lanes,
                },
                salt,
                hash: [0; 32].into(),
            },
            Kind::Bcrypt { cost } => Method::Bcrypt {
                cost,
                text: format!("$2b${cost:02}${}", ".".repeat(53)).into(),
            },
            Kind::Pbkdf2Sha512 { rounds, hash_bytes } => Method::Pbkdf2Sha512 {
                rounds,
                salt,
                hash: vec![0; hash_bytes].into(),
            },
        };
        Self {
            digest: [0; 32],
            method,
        }
    }

    /// Changes whenever the stored hash changes; a cache of successes keyed on it forgets a changed password by itself.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    pub(crate) fn kind(&self) -> Kind {
        match &self.method {
            Method::Argon2id { cost, .. } => Kind::Argon2id {
                memory_kib: cost.memory_kib,
                passes: cost.passes,
                lanes: cost.lanes,
            },
            Method::Bcrypt { cost, .. } => Kind::Bcrypt { cost: *cost },
            Method::Pbkdf2Sha512 { rounds, hash, .. } => Kind::Pbkdf2Sha512 {
                rounds: *rounds,
                hash_bytes: hash.len(),
            },
        }
    }
}

/// Makes a hash to store: argon2id with a fresh salt. `None` when the system gives no randomness.
pub fn hash_password(password: &[u8]) -> Option<String> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).ok()?;
    Some(hash_with_salt(password, &salt))
}

fn hash_with_salt(password: &[u8], salt: &[u8; 16]) -> String {
    let cost = Cost {
        memory_kib: NEW_HASH_MEMORY_KIB,
        passes: NEW_HASH_PASSES,
        lanes: 1,
    };
    let mut hash = [0; 32];
    // Cannot fail: the parameters are constants within the library's bounds, and parsing the result is tested.
    let is_done = argon2_into(cost, password, salt, &mut hash);
    debug_assert!(is_done);
    format!(
        "$argon2id$v=19$m={},t={},p={}${}${}",
        cost.memory_kib,
        cost.passes,
        cost.lanes,
        STANDARD_NO_PAD.encode(salt),
        STANDARD_NO_PAD.encode(hash)
    )
}

fn argon2_into(cost: Cost, password: &[u8], salt: &[u8], out: &mut [u8]) -> bool {
    let Ok(params) = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(out.len())) else {
        return false;
    };
    let blocks_len = params.block_count();
    let mut blocks = Vec::with_capacity(blocks_len.max(ALWAYS_GIVEN_BACK_BYTES / Block::SIZE));
    blocks.resize(blocks_len, Block::new());
    Argon2::new(Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into_with_memory(password, salt, out, &mut blocks)
        .is_ok()
}

/// Of what is stored, whether it is a hash or not.
pub(crate) fn digest(stored: &str) -> [u8; 32] {
    blake3::derive_key("sluice stored verifier digest", stored.as_bytes())
}

/// How a hash begins, that of a method we do not have included.
const BEGINNINGS: &[&str] = &[
    "$argon2", "$2a$", "$2b$", "$2x$", "$2y$", "$7$", "$6$", "$5$", "$1$",
];

/// What stands beside a hash or in it although it is none of it. `None`: the text is only a hash, or there is none in it.
fn besides_a_hash(text: &str) -> Option<&'static str> {
    const LOCKED: &str =
        "a locked account (`!` or `*`): use `enabled: false`, and give only the hash";
    if !text.is_empty() && text.chars().all(|c| matches!(c, '!' | '*')) {
        return Some(LOCKED);
    }
    let begins = |(at, _): &(usize, &str)| {
        let rest = text.get(*at..).unwrap_or_default();
        BEGINNINGS.iter().any(|start| rest.starts_with(start))
    };
    let (at, _) = text.match_indices('$').find(begins)?;
    let (before, hash) = text.split_at(at);
    if before.contains(':') {
        return Some("it looks like a line of a password file: give only the part after the colon");
    }
    if before.contains(['!', '*']) {
        return Some(LOCKED);
    }
    if !before.is_empty() {
        return Some(if before.trim().is_empty() {
            "white space before the hash"
        } else {
            "text before the hash; a hash begins with `$`"
        });
    }
    let after = hash.trim_start_matches(|c: char| !c.is_whitespace());
    match after.chars().next() {
        _ if !after.trim().is_empty() => Some("white space in the hash"),
        Some('\r') => Some("a carriage return after the hash"),
        Some('\n') => Some("a line feed after the hash"),
        Some(_) => Some("white space after the hash"),
        None if !hash.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Some("a character that no hash has")
        }
        None => None,
    }
}

const CUT_SHORT: &str = "it is cut short";
const NOT_BASE64: &str =
    "its salt or its end is not the base64 that it should be; it may be cut short";

/// A number as the formats write it: digits only.
fn number(digits: &str) -> Option<u32> {
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number)
}

fn argon2id(text: &str) -> Result<Method, HashError> {
    let broken = |what| HashError::Malformed {
        format: "argon2id",
        what,
    };
    // `$argon2id$v=19$m=...,t=...,p=...$salt$hash`; the version may be left out.
    if text.split('$').count() < 5 {
        return Err(broken(CUT_SHORT));
    }
    let phc = PasswordHash::new(text)
        .map_err(|_| broken("its parameters or its base64 are wrong; it may be cut short"))?;
    if phc.version.is_some_and(|version| version != 0x13) {
        return Err(HashError::Unsupported("argon2id version 16"));
    }
    let params = Params::try_from(&phc).map_err(|_| broken("its parameters are wrong"))?;
    let cost = Cost {
        memory_kib: params.m_cost(),
        passes: params.t_cost(),
        lanes: params.p_cost(),
    };
    if !params.keyid().is_empty() || !params.data().is_empty() {
        return Err(HashError::Unsupported("argon2id with keyid or data"));
    }
    bounded(
        "argon2id memory (m, in KiB)",
        cost.memory_kib,
        ARGON2_MEMORY_KIB_MAX,
    )?;
    bounded(
        "the number of argon2id passes (t)",
        cost.passes,
        ARGON2_PASSES_MAX,
    )?;
    bounded(
        "the number of argon2id lanes (p)",
        cost.lanes,
        ARGON2_LANES_MAX,
    )?;
    let (Some(salt), Some(hash)) = (phc.salt, phc.hash) else {
        return Err(broken(CUT_SHORT));
    };
    // Shorter ones are legal in the format, and found by trying.
    if hash.as_bytes().len() < 16 {
        return Err(broken(
            "its end has fewer than 16 bytes; it may be cut short",
        ));
    }
    if salt.len() < argon2::MIN_SALT_LEN {
        return Err(broken("its salt is too short"));
    }
    // What the library itself refuses (too little memory for the lanes) must not become a user who can never log in.
    Params::new(
        cost.memory_kib,
        cost.passes,
        cost.lanes,
        Some(hash.as_bytes().len()),
    )
    .map_err(|_| broken("its parameters do not go together"))?;
    Ok(Method::Argon2id {
        cost,
        salt: (*salt).into(),
        hash: hash.as_bytes().into(),
    })
}

/// `$2b$<cost>$<salt and hash>`, 60 characters.
fn bcrypt(text: &str) -> Result<Method, HashError> {
    let broken = |what| HashError::Malformed {
        format: "bcrypt",
        what,
    };
    match text.len() {
        ..60 => return Err(broken("it has fewer than 60 characters: it is cut short")),
        60 => {}
        61.. => return Err(broken("it has more than 60 characters")),
    }
    let cost = text.split('$').nth(2).filter(|cost| cost.len() == 2);
    let cost = cost
        .and_then(number)
        .filter(|cost| *cost >= 4)
        .ok_or_else(|| broken("its cost is not a number of two digits from 04 on"))?;
    // What the parser takes, the verifier takes as well.
    let parsed: Result<bcrypt::HashParts, _> = text.parse();
    parsed.map_err(|_| broken(NOT_BASE64))?;
    bounded("the bcrypt cost", cost, BCRYPT_COST_MAX)?;
    Ok(Method::Bcrypt {
        cost,
        text: text.into(),
    })
}

/// `$7$<rounds>$<salt>$<hash>`, both base64 with padding.
fn mosquitto(text: &str) -> Result<Method, HashError> {
    let broken = |what| HashError::Malformed {
        format: "`$7$`",
        what,
    };
    let mut parts = text.split('$').skip(2);
    let (Some(rounds), Some(salt), Some(hash)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(broken(CUT_SHORT));
    };
    if parts.next().is_some() {
        return Err(broken("something follows its end"));
    }
    let rounds = number(rounds)
        .filter(|rounds| *rounds > 0)
        .ok_or_else(|| broken("its rounds are not a number from 1 on"))?;
    let decode = |part| STANDARD.decode(part).map_err(|_| broken(NOT_BASE64));
    let (salt, hash) = (decode(salt)?, decode(hash)?);
    if salt.is_empty() || salt.len() > 256 {
        return Err(broken("its salt has not 1 to 256 bytes"));
    }
    if hash.len() != 64 {
        return Err(broken("its end has not 64 bytes; it may be cut short"));
    }
    bounded("the number of `$7$` rounds", rounds, PBKDF2_ROUNDS_MAX)?;
    Ok(Method::Pbkdf2Sha512 {
        rounds,
        salt: salt.into(),
        hash: hash.into(),
    })
}

fn bounded(what: &'static str, value: u32, max: u32) -> Result<(), HashError> {
    if value > max {
        return Err(HashError::TooCostly { what, max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with mosquitto_passwd's algorithm: PBKDF2-HMAC-SHA512, 101 rounds, 12 bytes of salt.
    fn mosquitto_hash(password: &[u8], rounds: u32) -> String {
        let salt = [7; 12];
        let mut hash = [0; 64];
        pbkdf2::pbkdf2_hmac::<sha2::Sha512>(password, &salt, rounds, &mut hash);
        format!(
            "$7${rounds}${}${}",
            STANDARD.encode(salt),
            STANDARD.encode(hash)
        )
    }

    #[test]
    fn each_format_takes_the_password_and_nothing_else() {
        let hashes = [
            hash_password(b"correct horse").unwrap(),
            bcrypt::hash("correct horse", 4).unwrap(),
            bcrypt::hash("correct horse", 4)
                .unwrap()
                .replacen("$2b$", "$2y$", 1),
            mosquitto_hash(b"correct horse", 101),
        ];
        for text in hashes {
            let verifier = Verifier::parse(&text).unwrap();
            assert!(verifier.verify(b"correct horse"), "{verifier:?}");
            for wrong in [&b"correct horsf"[..], b"", b"correct horse ", b"\xff\xfe"] {
                assert!(!verifier.verify(wrong), "{verifier:?} {wrong:?}");
            }
        }
    }

    #[test]
    fn known_answers_of_other_tools() {
        // The bcrypt test vector of OpenBSD's regress suite: `U*U` with cost 5.
        let verifier =
            Verifier::parse("$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW")
                .unwrap();
        assert!(verifier.verify(b"U*U"));
        assert!(!verifier.verify(b"U*V"));
    }

    #[test]
    fn bad_hashes_are_refused_with_their_reason() {
        let table = [
            (
                "hunter2",
                "not a password hash; never write the password itself here",
            ),
            ("", "not a password hash"),
            ("$", "not a password hash"),
            ("pa$$word", "not a password hash"),
            ("$9$whatever", "not a password hash"),
            (
                "$6$abc$def",
                "salted SHA-512 (`$6$`) hashes are not supported",
            ),
            (
                "$argon2i$v=19$m=8192,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
                "argon2i and argon2d hashes are not supported",
            ),
            (
                "$argon2id$v=19$m=8192,t=1,p=1",
                "broken argon2id hash: it is cut short",
            ),
            (
                "$argon2id$v=19$m=8192,t=1,p=1$c2FsdHNhbHQ",
                "broken argon2id hash: it is cut short",
            ),
            (
                "$argon2id$v=19$m=8192,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNo",
                "broken argon2id hash: its end has fewer than 16 bytes",
            ),
            (
                "$argon2id$v=19$m=8192,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA$",
                "broken argon2id hash: its parameters or its base64 are wrong",
            ),
            (
                "$argon2id$v=16$m=8192,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
                "argon2id version 16 hashes are not supported",
            ),
            (
                "$argon2id$v=19$m=4194304,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
                "argon2id memory (m, in KiB) is out of range; at most 65536",
            ),
            (
                "$argon2id$v=19$m=8192,t=99,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
                "the number of argon2id passes (t) is out of range; at most 10",
            ),
            (
                "$argon2id$v=19$m=8192,t=1,p=99$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA",
                "the number of argon2id lanes (p) is out of range; at most 16",
            ),
            (
                "$2b$04$short",
                "broken bcrypt hash: it has fewer than 60 characters",
            ),
            (
                "$2b$04$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOe!",
                "broken bcrypt hash: its salt or its end is not the base64",
            ),
            (
                "$2b$+4$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
                "broken bcrypt hash: its cost is not a number of two digits",
            ),
            (
                "$2b$03$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
                "broken bcrypt hash: its cost is not a number of two digits from 04 on",
            ),
            (
                "$2b$04$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW$",
                "broken bcrypt hash: it has more than 60 characters",
            ),
            ("$7$101$AAAA", "broken `$7$` hash: it is cut short"),
            (
                "$7$0$AAAA$AAAA",
                "broken `$7$` hash: its rounds are not a number",
            ),
            (
                "$7$x$AAAA$AAAA",
                "broken `$7$` hash: its rounds are not a number",
            ),
            (
                "$7$+1$AAAA$AAAA",
                "broken `$7$` hash: its rounds are not a number",
            ),
            (
                "$7$101$AAA$AAAA",
                "broken `$7$` hash: its salt or its end is not the base64",
            ),
            (
                "$7$101$$AAAA",
                "broken `$7$` hash: its salt has not 1 to 256 bytes",
            ),
            (
                "$7$101$AAAA$AAAA",
                "broken `$7$` hash: its end has not 64 bytes",
            ),
            (
                "$7$101$AAAA$AAAA$",
                "broken `$7$` hash: something follows its end",
            ),
        ];
        for (text, expected) in table {
            assert_refused(text, expected);
        }
        let costly = mosquitto_hash(b"x", 1).replacen("$7$1$", "$7$2000000$", 1);
        assert_refused(&costly, "the number of `$7$` rounds is out of range");
        let costly = bcrypt::hash("x", 4).unwrap().replacen("$04$", "$31$", 1);
        assert_refused(&costly, "the bcrypt cost is out of range; at most 14");
    }

    #[track_caller]
    fn assert_refused(text: &str, expected: &str) {
        let error = Verifier::parse(text).map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text:?}: {error}");
    }

    /// Each of them was read as the hash that is in it, where that was `$7$`: a locked account was open.
    #[test]
    fn what_stands_beside_a_hash_is_named_and_never_passed_over() {
        const LOCKED: &str = "a locked account (`!` or `*`): use `enabled: false`";
        const LINE: &str =
            "it looks like a line of a password file: give only the part after the colon";
        let hashes = [
            hash_password(b"secret").unwrap(),
            bcrypt::hash("secret", 4).unwrap(),
            mosquitto_hash(b"secret", 101),
            "$6$salt$hash".to_owned(),
        ];
        let table = [
            ("!", "", LOCKED),
            ("!!", "", LOCKED),
            ("*", "", LOCKED),
            (" !", "", LOCKED),
            ("*LK*", "", LOCKED),
            ("user:", "", LINE),
            ("user:!", "", LINE),
            (":", "", LINE),
            (" ", "", "white space before the hash"),
            ("\r\n", "", "white space before the hash"),
            ("x", "", "text before the hash; a hash begins with `$`"),
            ("$", "", "text before the hash"),
            ("\u{feff}", "", "text before the hash"),
            ("", "\r", "a carriage return after the hash"),
            ("", "\r\n", "a carriage return after the hash"),
            ("", "\n", "a line feed after the hash"),
            ("", " ", "white space after the hash"),
            ("", "\t", "white space after the hash"),
            ("", " # made in May", "white space in the hash"),
            ("", "\0", "a character that no hash has"),
            ("", "\u{200b}", "a character that no hash has"),
        ];
        for hash in hashes {
            for (before, after, expected) in table {
                assert_refused(&format!("{before}{hash}{after}"), expected);
            }
        }
        for text in ["!", "*", "!!"] {
            assert_refused(text, LOCKED);
        }
    }

    #[test]
    fn a_hash_that_is_cut_short_anywhere_is_refused() {
        let hashes = [
            hash_password(b"secret").unwrap(),
            bcrypt::hash("secret", 4).unwrap(),
            mosquitto_hash(b"secret", 101),
        ];
        for hash in hashes {
            for len in 0..hash.len() {
                let cut = &hash[..len];
                // An argon2id hash says nothing about its length: one of 16 bytes and more is as good.
                let Ok(verifier) = Verifier::parse(cut) else {
                    continue;
                };
                assert!(matches!(verifier.kind(), Kind::Argon2id { .. }), "{len}");
                assert!(!verifier.verify(b"secret"), "{len}");
            }
        }
    }

    #[test]
    fn neither_debug_nor_errors_print_the_hash() {
        let text = mosquitto_hash(b"x", 101);
        let verifier = Verifier::parse(&text).unwrap();
        let salt = text.split('$').nth(3).unwrap();
        assert!(!format!("{verifier:?}").contains(salt));
        for bad in [
            "my-secret",
            "my-secret:$7$1$AAAA",
            "$2b$my-secret",
            "!$7$my-secret",
        ] {
            let error = Verifier::parse(bad).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("my-secret"), "{shown}");
        }
    }

    #[test]
    fn a_changed_hash_has_another_digest() {
        let one = Verifier::parse(&mosquitto_hash(b"a", 101)).unwrap();
        let same = Verifier::parse(&mosquitto_hash(b"a", 101)).unwrap();
        let other = Verifier::parse(&mosquitto_hash(b"b", 101)).unwrap();
        assert_eq!(one.digest(), same.digest());
        assert_ne!(one.digest(), other.digest());
    }

    #[test]
    fn dummies_do_the_work_and_refuse() {
        let kinds = [
            Verifier::dummy().kind(),
            Kind::Bcrypt { cost: 4 },
            Kind::Pbkdf2Sha512 {
                rounds: 3,
                hash_bytes: 64,
            },
        ];
        for kind in kinds {
            let dummy = Verifier::dummy_of(kind);
            assert_eq!(dummy.kind(), kind);
            assert!(!dummy.verify(b""), "{kind:?}");
            assert!(!dummy.verify(b"password"), "{kind:?}");
        }
        // bcrypt answers early with an error on a hash it cannot read; the dummy must be one that it can.
        assert!(bcrypt::verify("x", &format!("$2b$04${}", ".".repeat(53))).is_ok());
    }
}
