//! Linear forms: what an activation tensor is made of, element by element.
//!
//! Between two operators that really compute something (a matrix product, a norm, a softmax) an exported
//! graph only moves, negates, scales and adds elements: reshapes, transposes, slices, concatenations,
//! rotary embeddings. A [`Form`] says for every element of a tensor which elements of which [base](super::base)
//! it is the sum of, and with which factors. Two exports that spell the same computation differently give
//! the same form.

use super::layout::Picks;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Names a base: a value that is more than a linear rearrangement of earlier ones.
pub(super) type BaseId = usize;

/// Marks an element that is zero.
const NOTHING: u64 = u64::MAX;
const INDEX_BITS: u32 = 40;

/// One element of a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Element {
    pub(super) base: BaseId,
    pub(super) index: usize,
}

impl Element {
    fn pack(self) -> u64 {
        ((self.base as u64) << INDEX_BITS) | self.index as u64
    }

    fn unpack(packed: u64) -> Option<Element> {
        (packed != NOTHING).then_some(Element {
            base: (packed >> INDEX_BITS) as usize,
            index: (packed & ((1 << INDEX_BITS) - 1)) as usize,
        })
    }
}

/// Factors of one term.
#[derive(Clone, Debug)]
enum Factors {
    Uniform(f64),
    Each(Rc<[f64]>),
}

impl Factors {
    fn at(&self, position: usize) -> f64 {
        match self {
            Factors::Uniform(value) => *value,
            Factors::Each(values) => values[position],
        }
    }
}

/// One summand of every element: which base element, times which factor.
#[derive(Clone, Debug)]
struct Term {
    elements: Rc<[u64]>,
    factors: Factors,
}

/// A tensor as a sum of base elements.
#[derive(Clone, Debug)]
pub(super) struct Form {
    pub(super) shape: Vec<usize>,
    terms: Vec<Term>,
    bases: BTreeSet<BaseId>,
}

impl Form {
    /// The base itself, of shape `shape`.
    pub(super) fn identity(base: BaseId, shape: &[usize]) -> Form {
        let count = shape.iter().product::<usize>();
        let elements = (0..count)
            .map(|index| Element { base, index }.pack())
            .collect();
        Form {
            shape: shape.to_vec(),
            terms: vec![Term {
                elements,
                factors: Factors::Uniform(1.0),
            }],
            bases: BTreeSet::from([base]),
        }
    }

    /// A tensor of zeros.
    pub(super) fn zeros(shape: &[usize]) -> Form {
        Form {
            shape: shape.to_vec(),
            terms: vec![],
            bases: BTreeSet::new(),
        }
    }

    /// No element is anything but zero.
    pub(super) fn is_zero(&self) -> bool {
        self.terms.is_empty()
    }

    /// Number of elements.
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The bases that occur.
    pub(super) fn bases(&self) -> &BTreeSet<BaseId> {
        &self.bases
    }

    /// The summands of the element at `position`, zeros left out.
    pub(super) fn summands(&self, position: usize) -> impl Iterator<Item = (Element, f64)> + '_ {
        self.terms.iter().filter_map(move |term| {
            Element::unpack(term.elements[position])
                .map(|element| (element, term.factors.at(position)))
        })
    }

    /// The only summand of an element, when there is exactly one.
    pub(super) fn only(&self, position: usize) -> Option<(Element, f64)> {
        let mut all = self.summands(position);
        let first = all.next()?;
        all.next().is_none().then_some(first)
    }

    /// The tensor rearranged as `picks` says.
    pub(super) fn pick(&self, picks: &Picks) -> Form {
        let shape = picks.shape.clone();
        if self.terms.is_empty() {
            return Form {
                shape,
                ..self.clone()
            };
        }
        let positions = picks.positions();
        let terms = self
            .terms
            .iter()
            .map(|term| Term {
                elements: positions.iter().map(|&from| term.elements[from]).collect(),
                factors: match &term.factors {
                    Factors::Uniform(value) => Factors::Uniform(*value),
                    Factors::Each(values) => {
                        Factors::Each(positions.iter().map(|&from| values[from]).collect())
                    }
                },
            })
            .collect();
        Form {
            shape,
            terms,
            bases: self.bases.clone(),
        }
    }

    /// The same elements in another shape of the same size.
    pub(super) fn reshape(&self, shape: Vec<usize>) -> Form {
        Form {
            shape,
            ..self.clone()
        }
    }

    /// Every element times `factor`.
    pub(super) fn scaled(&self, factor: f64) -> Form {
        let mut scaled = self.clone();
        for term in &mut scaled.terms {
            term.factors = match &term.factors {
                Factors::Uniform(value) => Factors::Uniform(value * factor),
                Factors::Each(values) => {
                    Factors::Each(values.iter().map(|value| value * factor).collect())
                }
            };
        }
        scaled
    }

    /// Element `i` times `factors[i]`; both have the same length.
    pub(super) fn scaled_each(&self, factors: &[f64]) -> Form {
        if let Some(&first) = factors.first()
            && factors.iter().all(|factor| *factor == first)
        {
            return self.scaled(first);
        }
        let mut scaled = self.clone();
        for term in &mut scaled.terms {
            let each = factors
                .iter()
                .enumerate()
                .map(|(i, factor)| factor * term.factors.at(i))
                .collect();
            term.factors = Factors::Each(each);
        }
        scaled
    }

    /// The sum of two forms of the same shape.
    pub(super) fn plus(&self, other: &Form) -> Form {
        let mut sum = self.clone();
        sum.terms.extend(other.terms.iter().cloned());
        sum.bases.extend(&other.bases);
        sum
    }

    /// Joins tensors along `axis`.
    pub(super) fn concat(parts: &[Form], axis: usize) -> Form {
        let mut shape = parts[0].shape.clone();
        shape[axis] = parts.iter().map(|part| part.shape[axis]).sum();
        let outer: usize = shape[..axis].iter().product();
        let run_of = |part: &Form| part.shape[axis..].iter().product::<usize>();
        let term_count = parts.iter().map(|part| part.terms.len()).max().unwrap_or(0);
        let total = shape.iter().product();
        let mut terms = Vec::with_capacity(term_count);
        for t in 0..term_count {
            let mut elements = Vec::with_capacity(total);
            let mut factors = Vec::with_capacity(total);
            for o in 0..outer {
                for part in parts {
                    let run = run_of(part);
                    for position in o * run..(o + 1) * run {
                        match part.terms.get(t) {
                            Some(term) => {
                                elements.push(term.elements[position]);
                                factors.push(term.factors.at(position));
                            }
                            None => {
                                elements.push(NOTHING);
                                factors.push(0.0);
                            }
                        }
                    }
                }
            }
            let uniform = factors
                .first()
                .filter(|first| factors.iter().all(|f| f == *first))
                .copied();
            terms.push(Term {
                elements: elements.into(),
                factors: uniform.map_or_else(|| Factors::Each(factors.into()), Factors::Uniform),
            });
        }
        let bases = parts
            .iter()
            .flat_map(|part| part.bases.iter().copied())
            .collect();
        Form {
            shape,
            terms,
            bases,
        }
    }
}
