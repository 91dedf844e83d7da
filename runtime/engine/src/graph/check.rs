//! A graph from a file is hostile until every index and width in it has been checked.

/// What is wrong with a lowered graph.
#[derive(Debug, thiserror::Error)]
#[error("graph node {node} ({name}): {problem}")]
pub struct GraphError {
    /// Index of the node.
    pub node: usize,
    /// Its name.
    pub name: String,
    /// What does not fit.
    pub problem: String,
}
