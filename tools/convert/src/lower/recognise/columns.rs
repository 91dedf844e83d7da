//! Reads a form as columns: one row per token, made of columns of one base.

use super::super::base::Bases;
use super::super::form::{BaseId, Form};

/// Where the tokens lie in a tensor's shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rows {
    /// An axis of the tensor; `inner` elements follow for each of its places.
    Tokens { inner: usize },
    /// The tensor holds one token only, the last.
    Last,
}

impl Rows {
    /// `None` when more than one axis could be the tokens. An axis of tokens times something counts as tokens
    /// first; where that is wrong, the elements will not fit together and nothing is concluded.
    pub(super) fn of(shape: &[usize], tokens: usize) -> Option<Rows> {
        let after = |axis: usize| shape[axis + 1..].iter().product::<usize>();
        let only = |wanted: &dyn Fn(usize) -> bool| {
            let mut axes = (0..shape.len()).filter(|&axis| wanted(shape[axis]));
            match (axes.next(), axes.next()) {
                (Some(axis), None) => Ok(Some(axis)),
                (None, _) => Ok(None),
                _ => Err(()),
            }
        };
        if let Some(axis) = only(&|size| size == tokens).ok()? {
            return Some(Rows::Tokens { inner: after(axis) });
        }
        match only(&|size| size > 0 && size.is_multiple_of(tokens)).ok()? {
            Some(axis) => Some(Rows::Tokens {
                inner: shape[axis] / tokens * after(axis),
            }),
            None => Some(Rows::Last),
        }
    }

    /// Token and column of an element.
    pub(super) fn place(self, index: usize, tokens: usize) -> (usize, usize) {
        match self {
            Rows::Tokens { inner } => (
                index / inner % tokens,
                index / (inner * tokens) * inner + index % inner,
            ),
            Rows::Last => (tokens - 1, index),
        }
    }
}

/// A form that is a selection of one base's columns.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    pub(super) base: BaseId,
    /// Column `i` of the form is this column of the base.
    pub(super) columns: Vec<usize>,
    /// Factor on all of them.
    pub(super) factor: f64,
}

impl Selection {
    /// The selection is a run of columns: its first one.
    pub(super) fn run(&self) -> Option<usize> {
        let first = *self.columns.first()?;
        self.columns
            .iter()
            .enumerate()
            .all(|(i, &column)| column == first + i)
            .then_some(first)
    }
}

/// The form as columns of one base, the same for every token.
pub(super) fn select(form: &Form, bases: &Bases, tokens: usize) -> Option<Selection> {
    let rows = Rows::of(&form.shape, tokens)?;
    let base = *form
        .bases()
        .iter()
        .next()
        .filter(|_| form.bases().len() == 1)?;
    let base_rows = Rows::of(&bases.get(base).shape, tokens)?;
    let width = match rows {
        Rows::Tokens { .. } => form.len() / tokens,
        Rows::Last => form.len(),
    };
    let mut columns = vec![usize::MAX; width];
    let factor = form.only(0)?.1;
    for position in 0..form.len() {
        let (element, own_factor) = form.only(position)?;
        let (token, column) = rows.place(position, tokens);
        let (from_token, from_column) = base_rows.place(element.index, tokens);
        if from_token != token || own_factor != factor {
            return None;
        }
        if columns[column] == usize::MAX {
            columns[column] = from_column;
        } else if columns[column] != from_column {
            return None;
        }
    }
    Some(Selection {
        base,
        columns,
        factor,
    })
}

/// The form is one base, element by element, times a factor.
pub(super) fn same_elements(form: &Form) -> Option<(BaseId, f64)> {
    let (first, factor) = form.only(0)?;
    let same = (0..form.len()).all(|position| {
        form.only(position).is_some_and(|(element, f)| {
            element.base == first.base && element.index == position && f == factor
        })
    });
    same.then_some((first.base, factor))
}
