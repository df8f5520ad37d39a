//! Decoding inverts encoding, for random packets of every kind, version and side.

use proptest::prelude::*;

use super::random::material;
use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn decode_inverts_encode(material in material()) {
        let packet = material.packet();
        let bytes = material.bytes();
        let decoded = decode(material.version, material.side, &bytes);
        prop_assert_eq!(decoded.as_ref(), Ok(&packet));
        // Encoding is a function of what was decoded, so the bytes come back, too.
        let mut again = vec![0xaa];
        encode(material.version, &decoded.unwrap(), &mut again).unwrap();
        prop_assert_eq!(&again[1..], &bytes[..], "after what was there");
    }

    #[test]
    fn a_publish_head_is_the_publish_without_payload(material in material()) {
        let Packet::Publish(publish) = material.packet() else {
            return Ok(());
        };
        let bytes = material.bytes();
        let head = &bytes[..bytes.len() - publish.payload.len()];
        let expected = Publish { payload: &[], ..publish };
        let decoded = decode_publish_head(material.version, material.side, head);
        prop_assert_eq!(decoded.as_ref(), Ok(&expected));
        let mut again = Vec::new();
        encode_publish_head(material.version, &expected, &[], &mut again).unwrap();
        prop_assert_eq!(&again[..], head);
    }

    #[test]
    fn properties_read_back_as_pushed(material in material()) {
        let bytes = material.bytes();
        let Ok(Packet::Publish(publish)) = decode(material.version, material.side, &bytes) else {
            return Ok(());
        };
        let mut copy = PropertiesBuf::new();
        for property in publish.properties.iter() {
            copy.push(property).unwrap();
            let id = property.id();
            match property {
                Property::Number(..) => prop_assert!(publish.properties.number(id).is_some()),
                Property::Text(_, text) => prop_assert_eq!(publish.properties.text(id), Some(text)),
                Property::Data(_, data) => prop_assert_eq!(publish.properties.data(id), Some(data)),
                Property::Pair(..) => prop_assert_eq!(id, PropertyId::UserProperty),
            }
        }
        prop_assert_eq!(copy.view(), publish.properties);
    }

    /// Whatever the bytes, the decoder answers, and what it accepts it can also write.
    #[test]
    fn any_bytes_are_answered(
        version in prop::sample::select(vec![Version::V31, Version::V311, Version::V5]),
        side in prop::sample::select(vec![Side::Client, Side::Server]),
        first in any::<u8>(),
        body in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let bytes = packet(first, &body);
        if let Ok(packet) = decode(version, side, &bytes) {
            let mut again = Vec::new();
            encode(version, &packet, &mut again).unwrap();
            prop_assert!(again.len() <= bytes.len());
        }
    }
}
