//! MQTT 3.1 (MQIsdp), 3.1.1 and 5: framing, decoding, encoding, topics.
//!
//! One path for the three versions, with a [`Version`] value; never two trees.

mod decode;
mod encode;
mod framer;
mod packet;
mod properties;
mod topic;
mod violation;

pub use decode::{decode, decode_connect, decode_publish_head};
pub use encode::encode;
pub use framer::{At, FixedHeader, Framer, Step};
pub use packet::{
    Ack, Auth, Connack, Connect, Disconnect, Packet, PacketId, PacketKind, Publish, QoS, Side,
    Suback, Subscribe, SubscribeFilter, Unsuback, Unsubscribe, Version, Will,
};
pub use properties::{Properties, Property, PropertyId};
pub use topic::{Filter, FilterError, TopicName, filter_matches, is_topic_name, parse_filter};
pub use violation::{ReasonCode, Violation};
