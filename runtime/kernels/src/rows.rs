//! Matrices of activations: rows of `width` numbers, `stride` numbers apart.

use std::ops::Range;

/// Activations to read: row `i` is `data[i * stride..][..width]`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    data: &'a [f32],
    rows: usize,
    stride: usize,
    width: usize,
}

impl<'a> Rows<'a> {
    /// Views `data` as rows.
    ///
    /// # Panics
    /// If `stride` is less than `width` or `data` is too short for the last row.
    pub fn new(data: &'a [f32], rows: usize, stride: usize, width: usize) -> Self {
        check(data.len(), rows, stride, width);
        Self {
            data,
            rows,
            stride,
            width,
        }
    }

    /// Rows that follow each other without a gap.
    ///
    /// # Panics
    /// If `data` is shorter than `rows * width`.
    pub fn contiguous(data: &'a [f32], rows: usize, width: usize) -> Self {
        Self::new(data, rows, width, width)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Distance between the starts of two rows.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// One row.
    #[inline]
    pub fn row(&self, index: usize) -> &'a [f32] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        &self.data[index * self.stride..][..self.width]
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn part(&self, rows: Range<usize>) -> Rows<'a> {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        let data = match rows.is_empty() {
            true => &[],
            false => &self.data[rows.start * self.stride..],
        };
        Rows {
            data,
            rows: rows.len(),
            ..*self
        }
    }
}

/// Activations to write: row `i` is `data[i * stride..][..width]`.
#[derive(Debug)]
pub struct RowsMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    stride: usize,
    width: usize,
}

impl<'a> RowsMut<'a> {
    /// Views `data` as rows.
    ///
    /// # Panics
    /// If `stride` is less than `width` or `data` is too short for the last row.
    pub fn new(data: &'a mut [f32], rows: usize, stride: usize, width: usize) -> Self {
        check(data.len(), rows, stride, width);
        Self {
            data,
            rows,
            stride,
            width,
        }
    }

    /// Rows that follow each other without a gap.
    ///
    /// # Panics
    /// If `data` is shorter than `rows * width`.
    pub fn contiguous(data: &'a mut [f32], rows: usize, width: usize) -> Self {
        Self::new(data, rows, width, width)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// One row.
    #[inline]
    pub fn row(&mut self, index: usize) -> &mut [f32] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        &mut self.data[index * self.stride..][..self.width]
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn part(&mut self, rows: Range<usize>) -> RowsMut<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        let data = match rows.is_empty() {
            true => &mut [],
            false => &mut self.data[rows.start * self.stride..],
        };
        RowsMut {
            data,
            rows: rows.len(),
            stride: self.stride,
            width: self.width,
        }
    }

    /// The same rows to read.
    pub fn as_rows(&self) -> Rows<'_> {
        Rows {
            data: self.data,
            rows: self.rows,
            stride: self.stride,
            width: self.width,
        }
    }

    /// A handle through which several threads write disjoint parts.
    pub(crate) fn shared(&mut self) -> SharedRows<'_> {
        SharedRows {
            data: self.data.as_mut_ptr(),
            rows: self.rows,
            stride: self.stride,
            width: self.width,
            borrow: std::marker::PhantomData,
        }
    }
}

fn check(len: usize, rows: usize, stride: usize, width: usize) {
    assert!(
        stride >= width,
        "stride {stride} is less than the width {width}"
    );
    if let Some(last) = rows.checked_sub(1) {
        let end = last
            .checked_mul(stride)
            .and_then(|start| start.checked_add(width));
        assert!(
            end.is_some_and(|end| end <= len),
            "{rows} rows do not fit into {len} numbers"
        );
    }
}

/// Rows that several threads write at once, each its own columns or rows.
#[derive(Clone, Copy)]
pub(crate) struct SharedRows<'a> {
    data: *mut f32,
    rows: usize,
    stride: usize,
    width: usize,
    borrow: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer is only used by `segment`, whose callers write disjoint parts of memory that is
// exclusively borrowed for `'a`; f32 is Send.
#[allow(unsafe_code)]
unsafe impl Send for SharedRows<'_> {}
// SAFETY: as for Send.
#[allow(unsafe_code)]
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    /// Columns `start..start + len` of row `row`.
    ///
    /// # Safety
    /// No two segments that are alive at the same time may overlap.
    #[allow(unsafe_code, clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) unsafe fn segment(&self, row: usize, start: usize, len: usize) -> &'a mut [f32] {
        assert!(row < self.rows && start <= self.width && len <= self.width - start);
        // SAFETY: the constructor checked that rows and widths are inside of the allocation, the line
        // above that the segment is inside of its row; exclusiveness is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.stride + start), len) }
    }
}
