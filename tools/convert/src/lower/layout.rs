//! Where each element of a rearranged tensor comes from: the index arithmetic of ONNX's layout operators.

/// Most elements a rearranged tensor may have: real decoders at the probed lengths stay far below.
const ELEMENTS_MAX: usize = 1 << 24;

/// The number of elements of `shape`; `None` when no real decoder has so many.
pub(super) fn element_count(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |count, &size| count.checked_mul(size))
        .filter(|count| *count <= ELEMENTS_MAX)
}

/// Row-major strides.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// The coordinates of a flat position.
pub(super) fn coordinates(mut position: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for axis in (0..shape.len()).rev() {
        if shape[axis] > 0 {
            at[axis] = position % shape[axis];
            position /= shape[axis];
        }
    }
    at
}

/// A rearrangement: the result's shape, and for every element of the result where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Picks {
    pub(super) shape: Vec<usize>,
    from: From,
}

#[derive(Clone, Debug, PartialEq)]
enum From {
    /// Axis `a` of the result advances by `steps[a]` in the source.
    Walk {
        start: isize,
        steps: Vec<isize>,
    },
    Listed(Vec<usize>),
}

impl Picks {
    /// The source position of every element, in row-major order.
    pub(super) fn positions(&self) -> Vec<usize> {
        let (start, steps) = match &self.from {
            From::Listed(positions) => return positions.clone(),
            From::Walk { start, steps } => (*start, steps),
        };
        let total = self.shape.iter().product();
        let mut positions = Vec::with_capacity(total);
        let mut at = vec![0usize; self.shape.len()];
        let mut position = start;
        for _ in 0..total {
            positions.push(position as usize);
            for axis in (0..self.shape.len()).rev() {
                at[axis] += 1;
                position += steps[axis];
                if at[axis] < self.shape[axis] {
                    break;
                }
                position -= steps[axis] * self.shape[axis] as isize;
                at[axis] = 0;
            }
        }
        positions
    }
}

/// Axis numbers as ONNX counts them, negative from the end.
pub(super) fn axis(axis: i64, rank: usize) -> Option<usize> {
    let axis = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(axis).ok().filter(|axis| *axis < rank)
}

/// `Transpose`.
pub(super) fn transpose(shape: &[usize], order: &[usize]) -> Picks {
    let strides = strides(shape);
    Picks {
        shape: order.iter().map(|&axis| shape[axis]).collect(),
        from: From::Walk {
            start: 0,
            steps: order.iter().map(|&axis| strides[axis] as isize).collect(),
        },
    }
}

/// `Slice` on one axis, with ONNX's clamping of `start` and `end`.
pub(super) fn slice(
    shape: &[usize],
    axis: usize,
    start: i64,
    end: i64,
    step: i64,
) -> Option<Picks> {
    let size = shape[axis] as i64;
    let wrap = |value: i64| {
        if value < 0 {
            value.saturating_add(size)
        } else {
            value
        }
    };
    let (start, count) = match step {
        0 => return None,
        1.. => {
            let (start, end) = (wrap(start).clamp(0, size), wrap(end).clamp(0, size));
            (
                start,
                (end - start).max(0).div_euclid(step) + i64::from((end - start).max(0) % step != 0),
            )
        }
        _ => {
            let (start, end) = (
                wrap(start).clamp(0, size - 1),
                wrap(end).clamp(-1, size - 1),
            );
            let span = (start - end).max(0);
            (start, span / -step + i64::from(span % -step != 0))
        }
    };
    let strides = strides(shape);
    let mut result = shape.to_vec();
    result[axis] = count as usize;
    let mut steps: Vec<isize> = strides.iter().map(|&stride| stride as isize).collect();
    steps[axis] *= step as isize;
    let start = start as isize * strides[axis] as isize;
    Some(Picks {
        shape: result,
        from: From::Walk { start, steps },
    })
}

/// Numpy broadcasting of two shapes; `None` when they do not fit, or the result would be absurdly large.
pub(super) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |shape: &[usize], axis: usize| {
        (axis + shape.len())
            .checked_sub(rank)
            .map_or(1, |axis| shape[axis])
    };
    let shape: Vec<usize> = (0..rank)
        .map(|axis| match (at(a, axis), at(b, axis)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect::<Option<_>>()?;
    element_count(&shape).map(|_| shape)
}

/// Source positions of a tensor of `shape` broadcast to `result`.
pub(super) fn expand(shape: &[usize], result: &[usize]) -> Picks {
    let strides = strides(shape);
    let missing = result.len() - shape.len();
    let steps: Vec<isize> = (0..result.len())
        .map(|axis| match axis.checked_sub(missing) {
            Some(own) if shape[own] != 1 => strides[own] as isize,
            _ => 0,
        })
        .collect();
    Picks {
        shape: result.to_vec(),
        from: From::Walk { start: 0, steps },
    }
}

/// `Gather` with known indices along `axis`.
pub(super) fn gather(
    shape: &[usize],
    axis: usize,
    indices: &[i64],
    indices_shape: &[usize],
) -> Option<Picks> {
    let size = shape[axis] as i64;
    let indices: Vec<usize> = indices
        .iter()
        .map(|&index| {
            let index = if index < 0 { index + size } else { index };
            (0..size).contains(&index).then_some(index as usize)
        })
        .collect::<Option<_>>()?;
    let outer: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    let shape = [&shape[..axis], indices_shape, &shape[axis + 1..]].concat();
    let mut picks = Vec::with_capacity(element_count(&shape)?);
    for o in 0..outer {
        for &index in &indices {
            let start = (o * size as usize + index) * inner;
            picks.extend(start..start + inner);
        }
    }
    Some(Picks {
        shape,
        from: From::Listed(picks),
    })
}

/// The shape `Reshape` asks for: 0 copies a dimension, -1 is what is left.
pub(super) fn reshaped(shape: &[usize], wanted: &[i64], allow_zero: bool) -> Option<Vec<usize>> {
    let product = |shape: &[usize]| {
        shape
            .iter()
            .try_fold(1usize, |count, &size| count.checked_mul(size))
    };
    let total = product(shape)?;
    let mut result = Vec::with_capacity(wanted.len());
    let mut open = None;
    for (axis, &size) in wanted.iter().enumerate() {
        result.push(match size {
            -1 if open.is_none() => {
                open = Some(axis);
                1
            }
            0 if !allow_zero => *shape.get(axis)?,
            size => usize::try_from(size).ok()?,
        });
    }
    let known = product(&result)?;
    if let Some(axis) = open {
        result[axis] = total.checked_div(known).unwrap_or(0);
    }
    (product(&result)? == total).then_some(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(picks: Picks) -> (Vec<usize>, Vec<usize>) {
        let positions = picks.positions();
        (picks.shape, positions)
    }

    #[test]
    fn transpose_reads_columns() {
        assert_eq!(
            parts(transpose(&[2, 3], &[1, 0])),
            (vec![3, 2], vec![0, 3, 1, 4, 2, 5])
        );
    }

    #[test]
    fn slice_clamps_and_steps_back() {
        assert_eq!(
            slice(&[4], 0, 1, i64::MAX, 2).map(parts),
            Some((vec![2], vec![1, 3]))
        );
        assert_eq!(
            slice(&[4], 0, -1, i64::MIN, -1).map(parts),
            Some((vec![4], vec![3, 2, 1, 0]))
        );
        assert_eq!(
            slice(&[2, 3], 1, -1, 3, 1).map(parts),
            Some((vec![2, 1], vec![2, 5]))
        );
        assert_eq!(slice(&[4], 0, 0, 4, 0), None);
    }

    #[test]
    fn expand_repeats_ones() {
        assert_eq!(
            expand(&[2, 1], &[2, 2, 2]).positions(),
            vec![0, 0, 1, 1, 0, 0, 1, 1]
        );
    }

    #[test]
    fn gather_refuses_an_index_outside() {
        assert_eq!(
            gather(&[3, 2], 0, &[-1, 0], &[2]).map(parts),
            Some((vec![2, 2], vec![4, 5, 0, 1]))
        );
        assert_eq!(gather(&[3, 2], 0, &[3], &[1]), None);
    }

    #[test]
    fn reshape_fills_in_the_open_dimension() {
        assert_eq!(reshaped(&[2, 6], &[0, -1, 3], false), Some(vec![2, 2, 3]));
        assert_eq!(reshaped(&[2, 6], &[5, -1], false), None);
    }
}
