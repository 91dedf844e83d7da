//! The graphs of a model, and what names stand for in them: bodies of `If`, `Loop` and `Scan` see the graphs around them.

use super::constant_matrix::{Definition, Producers};
use super::proto::{GraphProto, NodeProto, TensorProto};
use std::collections::{HashMap, HashSet};

/// Longer chains of casts and reshapes than any exporter writes.
const MAX_CHAIN: usize = 64;

/// Where a model stores a tensor: the graph's number, counted as [`Scopes`] walks through them, and the value there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) graph: usize,
    pub(crate) value: String,
}

/// The graphs of a model, the main one first, then each body before the bodies in it.
pub(crate) struct Scopes<'a> {
    /// Each with the numbers of those around it, outermost first.
    graphs: Vec<(&'a GraphProto, Vec<usize>)>,
    scopes: Vec<Scope<'a>>,
}

impl<'a> Scopes<'a> {
    pub(crate) fn of(main: &'a GraphProto) -> Scopes<'a> {
        fn walk<'a>(
            graph: &'a GraphProto,
            around: &[usize],
            found: &mut Vec<(&'a GraphProto, Vec<usize>)>,
        ) {
            let mut around = around.to_vec();
            found.push((graph, around.clone()));
            around.push(found.len() - 1);
            for body in graph.node.iter().flat_map(NodeProto::subgraphs) {
                walk(body, &around, found);
            }
        }
        let mut graphs = vec![];
        walk(main, &[], &mut graphs);
        let scopes = graphs.iter().map(|(graph, _)| Scope::of(graph)).collect();
        Scopes { graphs, scopes }
    }

    /// How many graphs there are.
    pub(crate) fn count(&self) -> usize {
        self.graphs.len()
    }

    /// Each graph, and what names stand for in it.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&'a GraphProto, Names<'_, 'a>)> {
        let numbered = self.graphs.iter().enumerate();
        numbered.map(|(number, (graph, around))| {
            let seen = std::iter::once(number).chain(around.iter().rev().copied());
            let names = Names {
                scopes: &self.scopes,
                seen: seen.collect(),
            };
            (*graph, names)
        })
    }
}

/// A graph and all bodies in it.
pub(crate) fn count_graphs(graph: &GraphProto) -> usize {
    let bodies = graph.node.iter().flat_map(NodeProto::subgraphs);
    1 + bodies.map(count_graphs).sum::<usize>()
}

/// Calls `change` for each graph with its number, as [`Scopes`] counts them. What it does may not add or take away bodies.
pub(crate) fn change_graphs(main: &mut GraphProto, change: &mut dyn FnMut(usize, &mut GraphProto)) {
    fn walk(
        graph: &mut GraphProto,
        next: &mut usize,
        change: &mut dyn FnMut(usize, &mut GraphProto),
    ) {
        change(*next, graph);
        *next += 1;
        let attributes = graph.node.iter_mut().flat_map(|node| &mut node.attribute);
        for attribute in attributes {
            for body in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                walk(body, next, change);
            }
        }
    }
    walk(main, &mut 0, change);
}

/// Whether a node gives the values of its first input in another shape, order or type.
pub(crate) fn moves(node: &NodeProto) -> bool {
    node.is_onnx()
        && matches!(
            node.op_type(),
            "Cast" | "Flatten" | "Identity" | "Reshape" | "Squeeze" | "Transpose" | "Unsqueeze"
        )
}

/// A constant that a node reads, perhaps moved.
pub(crate) struct MovedConstant<'a> {
    pub(crate) place: Place,
    pub(crate) tensor: &'a TensorProto,
    /// From the reader back to the constant.
    pub(crate) moved_by: Vec<&'a NodeProto>,
}

/// What the names in one graph stand for.
struct Scope<'a> {
    initializers: HashMap<&'a str, &'a TensorProto>,
    producers: Producers<'a>,
    inputs: HashSet<&'a str>,
}

impl<'a> Scope<'a> {
    fn of(graph: &'a GraphProto) -> Scope<'a> {
        let initializers = graph.initializer.iter();
        Scope {
            initializers: initializers.map(|tensor| (tensor.name(), tensor)).collect(),
            producers: Producers::of(graph),
            inputs: graph.input.iter().map(|input| input.name()).collect(),
        }
    }

    fn definition(&self, name: &str) -> Option<Definition<'a>> {
        match self.initializers.get(name) {
            Some(tensor) => Some(Definition::Initializer(tensor)),
            None => self.producers.get(name).map(Definition::Node),
        }
    }
}

/// What the names in a graph stand for: in itself and in those around it.
pub(crate) struct Names<'s, 'a> {
    scopes: &'s [Scope<'a>],
    /// The graph's number, and those around it from the inside out.
    seen: Vec<usize>,
}

impl<'a> Names<'_, 'a> {
    /// The number of the graph.
    pub(crate) fn graph(&self) -> usize {
        self.seen[0]
    }

    /// What a name stands for, and the number of the graph that says so; `None` for what is given to a graph.
    pub(crate) fn define(&self, name: &str) -> Option<(usize, Definition<'a>)> {
        for number in &self.seen {
            let scope = &self.scopes[*number];
            if let Some(definition) = scope.definition(name) {
                return Some((*number, definition));
            }
            if scope.inputs.contains(name) {
                return None;
            }
        }
        None
    }

    /// Whether a name is an input of the model.
    pub(crate) fn is_model_input(&self, name: &str) -> bool {
        let holds = |number: &&usize| {
            let scope = &self.scopes[**number];
            scope.inputs.contains(name) || scope.definition(name).is_some()
        };
        self.seen.iter().find(holds) == Some(&0)
            && self.scopes[0].inputs.contains(name)
            && self.scopes[0].definition(name).is_none()
    }

    /// The value that a name is, before it was moved.
    pub(crate) fn source(&self, name: &str) -> String {
        let mut name = name.to_owned();
        for _ in 0..MAX_CHAIN {
            let Some((_, Definition::Node(node))) = self.define(&name) else {
                break;
            };
            match node.input_name(0).filter(|_| moves(node)) {
                Some(input) => name = input.to_owned(),
                None => break,
            }
        }
        name
    }

    /// Where the constant behind a name is stored, and its message.
    pub(crate) fn constant(&self, name: &str) -> Option<(Place, &'a TensorProto)> {
        let constant = self.moved_constant(name)?;
        Some((constant.place, constant.tensor))
    }

    /// The constant behind a name, and what moves it on its way.
    pub(crate) fn moved_constant(&self, name: &str) -> Option<MovedConstant<'a>> {
        let mut name = name.to_owned();
        let mut moved_by = vec![];
        for _ in 0..MAX_CHAIN {
            let (graph, definition) = self.define(&name)?;
            let node = match definition {
                Definition::Initializer(tensor) => {
                    let place = Place { graph, value: name };
                    return Some(MovedConstant {
                        place,
                        tensor,
                        moved_by,
                    });
                }
                Definition::Node(node) => node,
            };
            if node.is("Constant") {
                return Some(MovedConstant {
                    place: Place { graph, value: name },
                    tensor: node.tensor("value")?,
                    moved_by,
                });
            }
            name = node.input_name(0).filter(|_| moves(node))?.to_owned();
            moved_by.push(node);
        }
        None
    }
}
