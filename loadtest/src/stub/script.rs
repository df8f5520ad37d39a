//! What a test tells the stub about a client's next connections. Plain values.

use crate::packet::Props;

/// What happens when CONNECT arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnConnect {
    /// CONNACK 0.
    #[default]
    Accept,
    /// CONNACK with this code, then close.
    Refuse(u8),
    /// Nothing, until [`super::Peer::release`].
    Hold,
    /// Reset.
    Reset,
    /// Close.
    Close,
}

/// How a client's connections are treated. The default is the tiny broker.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// What happens when CONNECT arrives.
    pub on_connect: OnConnect,
    /// Properties of the CONNACK (version 5).
    pub connack_props: Props,
    /// Nothing is answered after CONNACK but what the test sends.
    pub is_manual: bool,
    /// Reading stops with CONNECT, until [`super::Peer::resume`].
    pub is_stalled: bool,
}

impl Script {
    /// The tiny broker.
    pub fn new() -> Self {
        Self::default()
    }
    /// Sets what happens at CONNECT.
    pub fn on_connect(mut self, on_connect: OnConnect) -> Self {
        self.on_connect = on_connect;
        self
    }
    /// Sets the properties of CONNACK.
    pub fn connack_props(mut self, props: Props) -> Self {
        self.connack_props = props;
        self
    }
    /// After CONNACK only the test speaks.
    pub fn manual(mut self) -> Self {
        self.is_manual = true;
        self
    }
    /// Stops reading at CONNECT.
    pub fn stalled(mut self) -> Self {
        self.is_stalled = true;
        self
    }
}
