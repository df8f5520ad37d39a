//! MQTT 3.1 (MQIsdp), 3.1.1 and 5: framing, decoding, encoding, topics.
//!
//! One path for the three versions, with a [`Version`] value; never two trees.

mod codes;
mod decode;
mod encode;
mod framer;
mod header;
mod mend;
mod packet;
mod properties;
mod topic;
mod violation;

pub use codes::connack_refusal;
pub use decode::{
    decode, decode_connect, decode_publish_head, decode_subscribe_head, decode_unsubscribe_head,
    next_subscribe_filter, next_unsubscribe_filter,
};
pub use encode::{
    PropertyEdit, TooLong, encode, encode_connack, encode_connect, encode_fixed_header,
    encode_publish_head, encode_unsubscribe, slim,
};
pub use framer::{At, FixedHeader, Framer, Step};
pub use header::plain_first_byte;
pub use mend::{PublishRemains, mend, publish_remains};
pub use packet::{
    Ack, Auth, Connack, Connect, Disconnect, FiltersHead, Packet, PacketId, PacketKind, Publish,
    QoS, Side, Suback, Subscribe, SubscribeFilter, SubscribeFilters, Unsuback, Unsubscribe,
    UnsubscribeFilters, Version, Will,
};
pub use properties::{Properties, PropertiesBuf, Property, PropertyId};
pub use topic::{Filter, FilterError, TopicName, filter_matches, is_topic_name, parse_filter};
pub use violation::{ReasonCode, Violation};

#[cfg(test)]
mod tests;
