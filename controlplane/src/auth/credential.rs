//! How a token is written: `slc_<id>_<secret>`, `slj_<id>_<secret>`, `sln_<node>_<secret>`.
//!
//! Splits and joins texts; compares nothing.

use tonic::metadata::MetadataMap;
use zeroize::Zeroizing;

use crate::domain::{Name, Secret, TokenId};

/// Length of the public part of a token.
const ID_LEN: usize = 16;

/// Which kind of token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An operator's.
    Caller,
    /// For joining.
    Join,
}

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Caller => "slc_",
            Self::Join => "slj_",
        }
    }
}

/// The token as its holder writes it.
pub fn written(kind: Kind, id: &TokenId, secret: &Secret) -> Zeroizing<String> {
    let secret = secret.to_hex();
    Zeroizing::new([kind.prefix(), &id.0, "_", &secret].concat())
}

/// Id and secret of a token; `None`: it is none of that kind.
pub fn read(kind: Kind, text: &str) -> Option<(TokenId, Secret)> {
    let (id, secret) = text.strip_prefix(kind.prefix())?.split_once('_')?;
    let fits = id.len() == ID_LEN && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    fits.then_some(())?;
    Some((TokenId(id.into()), Secret::parse(secret)?))
}

/// Name and secret of a node; `None`: it is no node's secret.
pub fn read_node(text: &str) -> Option<(Name, Secret)> {
    // A name may hold `_`, a secret cannot.
    let (name, secret) = text.strip_prefix("sln_")?.rsplit_once('_')?;
    Some((Name::parse(name)?, Secret::parse(secret)?))
}

/// A new id and a new secret.
pub fn random() -> Result<(TokenId, Secret), getrandom::Error> {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut bytes = [0_u8; ID_LEN];
    getrandom::fill(&mut bytes)?;
    let letter = |byte: u8| LETTERS.get(usize::from(byte % 32)).copied().unwrap_or(b'a');
    let id: String = bytes.map(|byte| char::from(letter(byte))).iter().collect();
    let mut secret = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *secret)?;
    Ok((TokenId(id.into()), Secret::new(*secret)))
}

/// What a request's `authorization` holds.
pub(super) enum Authorization<'a> {
    /// Nothing.
    None,
    /// Something else than one bearer token.
    Malformed,
    /// A bearer token.
    Bearer(&'a str),
}

/// Reads `authorization`.
pub(super) fn authorization(metadata: &MetadataMap) -> Authorization<'_> {
    let mut values = metadata.get_all("authorization").iter();
    let Some(value) = values.next() else {
        return Authorization::None;
    };
    let bearer = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match (bearer, values.next()) {
        (Some((_, token)), None) => Authorization::Bearer(token.trim()),
        (Some(_) | None, _) => Authorization::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    #[test]
    fn tokens_are_read_strictly() {
        for (text, expected) in [
            (format!("slc_abcdefgh12345678_{SECRET}"), true),
            (format!("slj_abcdefgh12345678_{SECRET}"), false),
            (format!("slc_abcdefgh1234567_{SECRET}"), false),
            (format!("slc_abcdefgh123456789_{SECRET}"), false),
            (format!("slc_abcdefgh1234567-_{SECRET}"), false),
            (format!("slc_abcdefgh12345678_{SECRET}0"), false),
            (format!("slc_abcdefgh12345678_{SECRET}_"), false),
            (format!("slc_abcdefgh12345678_{}", &SECRET[1..]), false),
            (
                format!("slc_abcdefgh12345678_{}", SECRET.to_uppercase()),
                false,
            ),
            (format!("slc_äbcdefgh1234567_{SECRET}"), false),
            ("slc_".into(), false),
            (String::new(), false),
        ] {
            assert_eq!(read(Kind::Caller, &text).is_some(), expected, "{text}");
        }
        let (name, _) = read_node(&format!("sln_plant_7.edge-1_{SECRET}")).expect("a node's");
        assert_eq!(name.as_str(), "plant_7.edge-1");
        for bad in [
            format!("sln__{SECRET}"),
            format!("sln_a b_{SECRET}"),
            format!("sln_{SECRET}"),
        ] {
            assert!(read_node(&bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn new_tokens_can_be_read_and_differ() {
        let (id, secret) = random().expect("randomness");
        let (other, _) = random().expect("randomness");
        assert_ne!(id, other);
        for kind in [Kind::Caller, Kind::Join] {
            let text = written(kind, &id, &secret);
            let (read_id, read_secret) = read(kind, &text).expect("its own spelling");
            assert_eq!(read_id, id);
            assert!(secret.hash().is_of(&read_secret));
        }
    }

    #[test]
    fn only_one_bearer_token_is_one() {
        for (values, expected) in [
            (&[][..], "none"),
            (&["Bearer x"], "x"),
            (&["bearer  x "], "x"),
            (&["Basic x"], "malformed"),
            (&["Bearer"], "malformed"),
            (&["x"], "malformed"),
            (&["Bearer x", "Bearer y"], "malformed"),
        ] {
            let mut metadata = MetadataMap::new();
            for value in values {
                metadata.append("authorization", value.parse().expect("ascii"));
            }
            let found = match authorization(&metadata) {
                Authorization::None => "none",
                Authorization::Malformed => "malformed",
                Authorization::Bearer(token) => token,
            };
            assert_eq!(found, expected, "{values:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(slc_|slj_|sln_)?\\PC{0,120}") {
            let _ = (read(Kind::Caller, &text), read(Kind::Join, &text), read_node(&text));
        }
    }
}
