//! What quantizers do to a matrix, and what the rewrite leaves of a graph.

mod methods;
mod rewrite;
