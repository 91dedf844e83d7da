//! Which graph nodes are computed together.
//!
//! The graph says what a model computes, one node after the other; a plan of one operator per node would write
//! every value to memory only to read it again. A step computes a matrix product together with what makes its
//! input and with the residual sum that takes its result, for the same bits.

use niwaki_bundle::graph::{Columns, Graph, MatrixId, Op};

/// Nodes that one operator of the plan computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    /// The node itself.
    pub(super) node: usize,
    /// The norm or gate before a quantized matrix product: quantized as it is computed.
    pub(super) source: Option<usize>,
    /// The sum after a matrix product.
    pub(super) sum: Option<Sum>,
}

/// A residual sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sum {
    /// The node that adds.
    pub(super) node: usize,
    /// What the scaled product is added to.
    pub(super) residual: Columns,
    /// Factor on the product.
    pub(super) scale: f32,
}

impl Step {
    /// The node whose value the step computes.
    pub(super) fn value(&self) -> usize {
        self.sum.map_or(self.node, |sum| sum.node)
    }

    /// What the step reads: the inputs of its first node, then the residual.
    pub(super) fn inputs<'a>(&'a self, graph: &'a Graph) -> impl Iterator<Item = &'a Columns> {
        let first = graph.nodes.get(self.source.unwrap_or(self.node));
        let residual = self.sum.as_ref().map(|sum| &sum.residual);
        first
            .into_iter()
            .flat_map(|node| &node.inputs)
            .chain(residual)
    }
}

/// The steps of a checked graph; each reads only values of earlier ones and rows that are given.
pub(super) fn steps(graph: &Graph, is_quantized: impl Fn(MatrixId) -> bool) -> Vec<Step> {
    let readers = Readers::of(graph);
    let nodes = &graph.nodes;
    let is_quantized_product = |id: usize| matches!(nodes.get(id).map(|node| &node.op), Some(Op::Linear { weight, .. }) if is_quantized(*weight));
    let is_source = |id: usize| {
        let whole = match nodes.get(id) {
            Some(node) => match node.op {
                Op::Norm { group, .. } => group == node.width,
                Op::Gate { .. } => true,
                _ => false,
            },
            None => false,
        };
        whole
            && !graph.is_output(id)
            && !readers.all(id).is_empty()
            && readers
                .all(id)
                .iter()
                .all(|reader| reader.whole && is_quantized_product(reader.node))
    };
    let mut sums: Vec<Option<Sum>> = vec![None; nodes.len()];
    // What is given is there already.
    let is_given = |id: usize| matches!(nodes.get(id).map(|node| &node.op), Some(Op::Rows { .. }));
    let mut computed_by_step: Vec<bool> = (0..nodes.len())
        .map(|id| is_source(id) || is_given(id))
        .collect();
    for (id, node) in nodes.iter().enumerate() {
        let (Op::Add { scale }, [a, b]) = (&node.op, node.inputs.as_slice()) else {
            continue;
        };
        let is_product = |columns: &Columns| {
            let product = nodes.get(columns.node);
            product.is_some_and(|product| matches!(product.op, Op::Linear { .. }))
                && !graph.is_output(columns.node)
                && matches!(readers.all(columns.node), [reader] if reader.whole)
        };
        // `a + scale * b`: either operand may be the product when the scale is 1.
        let (product, residual) = if is_product(b) {
            (b, a)
        } else if is_product(a) && *scale == 1.0 {
            (a, b)
        } else {
            continue;
        };
        if let (Some(sum), Some(computed)) =
            (sums.get_mut(product.node), computed_by_step.get_mut(id))
        {
            *sum = Some(Sum {
                node: id,
                residual: *residual,
                scale: *scale,
            });
            *computed = true;
        }
    }
    let mut steps: Vec<Step> = (0..nodes.len())
        .zip(&computed_by_step)
        .zip(&sums)
        .filter(|((_, computed), _)| !**computed)
        .map(|((node, _), sum)| {
            let source = nodes
                .get(node)
                .and_then(|node| node.inputs.first())
                .map(|input| input.node)
                .filter(|input| is_quantized_product(node) && is_source(*input));
            Step {
                node,
                source,
                sum: *sum,
            }
        })
        .collect();
    // A residual may come after the product that is added to it.
    steps.sort_by_key(Step::value);
    steps
}

/// Who reads each node's value.
struct Readers(Vec<Vec<Reader>>);

struct Reader {
    node: usize,
    /// All columns, and not some of them.
    whole: bool,
}

impl Readers {
    fn of(graph: &Graph) -> Readers {
        let mut readers: Vec<Vec<Reader>> = graph.nodes.iter().map(|_| Vec::new()).collect();
        for (node, reader) in graph.nodes.iter().enumerate() {
            for input in &reader.inputs {
                let width = graph.nodes.get(input.node).map(|node| node.width);
                let whole = width == Some(input.width);
                if let Some(readers) = readers.get_mut(input.node) {
                    readers.push(Reader { node, whole });
                }
            }
        }
        Readers(readers)
    }

    fn all(&self, node: usize) -> &[Reader] {
        self.0.get(node).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::test_graphs::{add, embed, feed_forward, graph, linear, norm};

    /// Source, node and sum of each step.
    fn plan(graph: &Graph, quantized: bool) -> Vec<(Option<usize>, usize, Option<usize>)> {
        let steps = steps(graph, |_| quantized);
        let parts = |step: &Step| (step.source, step.node, step.sum.map(|sum| sum.node));
        let mut seen = vec![false; graph.nodes.len()];
        for step in &steps {
            assert!(
                step.inputs(graph).all(|input| seen[input.node]),
                "reads a value that is not there yet"
            );
            seen[step.value()] = true;
        }
        steps.iter().map(parts).collect()
    }

    #[test]
    fn a_block_becomes_its_matrix_products() {
        let expected = [
            (None, 0, None),
            (Some(1), 2, None),
            (Some(1), 3, None),
            (Some(4), 5, Some(6)),
        ];
        assert_eq!(plan(&feed_forward(), true), expected);
    }

    #[test]
    fn floats_are_not_quantized_on_the_way() {
        let nodes: Vec<usize> = plan(&feed_forward(), false)
            .iter()
            .map(|step| step.1)
            .collect();
        assert_eq!(nodes, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_value_that_others_read_stays() {
        let normalised = graph(&[
            (embed(), &[]),
            (norm(), &[0]),
            (linear(), &[1]),
            (add(1.0), &[1, 2]),
        ]);
        assert_eq!(
            plan(&normalised, true),
            [(None, 0, None), (None, 1, None), (None, 2, Some(3))]
        );
        let product = graph(&[
            (embed(), &[]),
            (linear(), &[0]),
            (add(1.0), &[0, 1]),
            (add(1.0), &[1, 2]),
        ]);
        assert_eq!(plan(&product, true).len(), 4);
    }

    #[test]
    fn of_two_products_that_are_added_one_is_the_residual() {
        let parallel = graph(&[
            (embed(), &[]),
            (linear(), &[0]),
            (linear(), &[0]),
            (add(1.0), &[1, 2]),
        ]);
        assert_eq!(
            plan(&parallel, true),
            [(None, 0, None), (None, 1, None), (None, 2, Some(3))]
        );
    }

    #[test]
    fn only_an_unscaled_product_may_be_the_first_operand() {
        for (scale, steps) in [(1.0, 2), (0.5, 3)] {
            let first = graph(&[(embed(), &[]), (linear(), &[0]), (add(scale), &[1, 0])]);
            assert_eq!(plan(&first, true).len(), steps);
        }
    }
}
