//! Names, roles and secrets of those who call: operators' tokens, join tokens, and the nodes' own secrets.
//!
//! Written out, a token is `slc_<id>_<secret>` (operators), `slj_<id>_<secret>` (joining) or `sln_<node>_<secret>` (a node);
//! ids are 16 letters and digits, secrets 64 lower-case hex digits. Only a hash of a secret is ever stored: the secrets are
//! 32 random bytes, so a fast hash is as good as a slow one.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::UnixMillis;

/// What a caller may do; each role may do all that the one before may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Looks at policy, generations and nodes.
    Viewer,
    /// And at sessions and the audit log.
    Auditor,
    /// And applies, releases, rolls back, kicks and drains.
    Operator,
    /// And gives and takes access, and makes backups.
    Admin,
}

impl Role {
    /// All, lowest first.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Auditor, Self::Operator, Self::Admin];

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Auditor => "auditor",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// A name of a node or a token: 1 to 64 of letters, digits, `-`, `_` and `.`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

impl Name {
    /// Checks it.
    pub fn parse(text: &str) -> Option<Self> {
        let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let fits = (1..=64).contains(&text.len()) && text.bytes().all(is_good);
        fits.then(|| Self(text.into()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The public part of a token: 16 letters and digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub Box<str>);

/// 32 random bytes that prove who calls.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    /// From its bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// From 64 lower-case hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut bytes = Zeroizing::new([0; 32]);
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != bytes.len() || !rest.is_empty() {
            return None;
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Self(bytes))
    }

    /// As 64 lower-case hex digits.
    pub fn to_hex(&self) -> Zeroizing<String> {
        use std::fmt::Write;
        let mut text = Zeroizing::new(String::with_capacity(64));
        for byte in self.0.iter() {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// What is stored.
    pub fn hash(&self) -> SecretHash {
        let key = "sluice token secret 1";
        SecretHash(blake3::derive_key(key, self.0.as_slice()))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What is stored of a secret.
#[derive(Clone, Copy)]
pub struct SecretHash(pub [u8; 32]);

impl SecretHash {
    /// Whether it is of this secret, in a time that does not tell.
    pub fn is_of(&self, secret: &Secret) -> bool {
        self.0.ct_eq(&secret.hash().0).into()
    }
}

impl std::fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretHash(..)")
    }
}

/// An operator's token.
#[derive(Clone, Debug)]
pub struct Token {
    /// Which.
    pub id: TokenId,
    /// Who.
    pub name: Name,
    /// What they may do.
    pub role: Role,
    /// Of its secret.
    pub hash: SecretHash,
    /// When it was made.
    pub created_at: UnixMillis,
    /// By whom.
    pub created_by: String,
    /// From then on it is worth nothing.
    pub expires_at: Option<UnixMillis>,
    /// The same, by someone's decision.
    pub revoked_at: Option<UnixMillis>,
}

impl Token {
    /// True exactly when it opens a door at this time.
    pub fn works(&self, now: UnixMillis) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| now < at)
    }
}

/// A token with which nodes become members.
#[derive(Clone, Debug)]
pub struct JoinToken {
    /// Which.
    pub id: TokenId,
    /// The one node it is for.
    pub node: Option<Name>,
    /// Nodes that may still join.
    pub uses_left: u32,
    /// Of its secret.
    pub hash: SecretHash,
    /// When it was made.
    pub created_at: UnixMillis,
    /// By whom.
    pub created_by: String,
    /// From then on it is worth nothing.
    pub expires_at: UnixMillis,
    /// The same, by someone's decision.
    pub revoked_at: Option<UnixMillis>,
}

impl JoinToken {
    /// True exactly when a node can join with it at this time.
    pub fn works(&self, now: UnixMillis) -> bool {
        self.revoked_at.is_none() && now < self.expires_at && self.uses_left > 0
    }
}

/// A member of the fleet.
#[derive(Clone, Debug)]
pub struct NodeRecord {
    /// Its name.
    pub name: Name,
    /// Of its secret.
    pub hash: SecretHash,
    /// When it joined.
    pub enrolled_at: UnixMillis,
    /// With which join token.
    pub join_token: TokenId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_survives_being_written_out_and_is_not_shown() {
        let secret = Secret::new(std::array::from_fn(|n| u8::try_from(n * 7).unwrap()));
        let text = secret.to_hex();
        let read = Secret::parse(&text).expect("its own spelling");
        assert!(secret.hash().is_of(&read));
        assert!(!secret.hash().is_of(&Secret::new([0; 32])));
        assert!(!format!("{secret:?}{:?}", secret.hash()).contains(&text[..6]));
        let upper = text.to_uppercase();
        for bad in ["", &text[1..], &text[..62], &upper, &"g".repeat(64)] {
            assert!(Secret::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn names_are_short_and_plain() {
        for (text, is_good) in [
            ("edge-1.plant_7", true),
            ("", false),
            ("a b", false),
            ("ä", false),
            ("a/b", false),
        ] {
            assert_eq!(Name::parse(text).is_some(), is_good, "{text:?}");
        }
        assert!(Name::parse(&"x".repeat(64)).is_some());
        assert!(Name::parse(&"x".repeat(65)).is_none());
    }
}
