//! Series for each node, as many as the bound allows: made for each page, so that a node that was removed leaves none.

use std::fmt::Write;

use super::{describe, single};
use crate::fleet::{Figures, Fleet};

/// The first by name, and how many are left out.
pub(super) fn write(text: &mut String, fleet: &Fleet, nodes_max: usize) {
    let (nodes, left_out) = fleet.figures(nodes_max);
    type Read = fn(&Figures) -> Option<u64>;
    let families: [(&str, &str, Read); 5] = [
        (
            "sluice_control_node_connected",
            "Whether a node is connected to the control plane: 1 or 0.",
            |node| Some(u64::from(node.now.is_some())),
        ),
        (
            "sluice_control_node_sessions",
            "Sessions open on a connected node, as it told last.",
            |node| node.now.map(|now| now.sessions),
        ),
        (
            "sluice_control_node_active_generation",
            "Number of the generation that every shard of a connected node judges by; 0 while they do not agree or have none.",
            |node| node.now.map(|now| now.active_generation),
        ),
        (
            "sluice_control_node_endpoints",
            "Upstream endpoints in the policy of a connected node.",
            |node| node.now.map(|now| now.endpoints),
        ),
        (
            "sluice_control_node_endpoints_usable",
            "Upstream endpoints that a connected node can send clients to.",
            |node| node.now.map(|now| now.endpoints_usable),
        ),
    ];
    for (name, help, read) in families {
        describe(text, name, "gauge", help);
        for node in &nodes {
            if let Some(value) = read(node) {
                // Names have no character that would have to be escaped.
                let _ = writeln!(text, "{name}{{node=\"{}\"}} {value}", node.name);
            }
        }
    }
    single(
        text,
        "sluice_control_nodes_left_out",
        "gauge",
        "Nodes without series of their own, because there are more than --metrics-nodes-max.",
        left_out as f64,
    );
}
