//! Time by operator, taken only when someone asks.

use std::time::Duration;

/// Where the time of a session's appends went, since
/// [`Session::start_profile`](crate::Session::start_profile).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Of each node of the [`Graph`](niwaki_bundle::graph::Graph), by its index there: all its runs together. What is
    /// computed together with a matrix product counts for the product.
    pub nodes: Vec<Duration>,
    /// Of whole appends. What the nodes did not take went into the plan and the session around them.
    pub total: Duration,
    /// Number of appends.
    pub appends: usize,
}

impl Profile {
    pub(crate) fn new(nodes: usize) -> Profile {
        Profile {
            nodes: vec![Duration::ZERO; nodes],
            ..Profile::default()
        }
    }

    pub(crate) fn add_node(&mut self, node: usize, elapsed: Duration) {
        if let Some(sum) = self.nodes.get_mut(node) {
            *sum += elapsed;
        }
    }

    pub(crate) fn add_append(&mut self, elapsed: Duration) {
        self.total += elapsed;
        self.appends += 1;
    }
}
