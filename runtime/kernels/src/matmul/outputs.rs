//! Where the results of a product of integers go.
#![allow(unsafe_code)]

use crate::format::ROWS;
use crate::lanes::{Lanes, Simd, load_part, store_part};
use crate::rows::SharedRows;

/// Columns of the output, from a group on, and the bias of all columns.
pub(crate) struct Outputs<'a> {
    pub(crate) out: SharedRows<'a>,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) first_group: usize,
    /// Columns of the output.
    pub(crate) columns: usize,
}

impl Outputs<'_> {
    /// Writes the sums of a group, counted from the first one, plus the bias.
    ///
    /// # Safety
    /// No other thread may access these columns.
    #[inline(always)]
    pub(crate) unsafe fn put_group<S: Simd>(&self, simd: S, group: usize, row: usize, sum: S::F) {
        let start = (self.first_group + group) * ROWS;
        let len = ROWS.min(self.columns - start);
        let sum = self.bias.map_or(sum, |bias| {
            sum + load_part(simd, &bias[start..][..len], 0.0)
        });
        // SAFETY: the caller's promise.
        let out = unsafe { self.out.segment(row, start, len) };
        match out.as_chunks_mut::<ROWS>().0 {
            [out] => sum.store(out),
            _ => store_part(sum, out),
        }
    }

    /// Lets `write` write `count` whole groups, at most 4, of `M` rows: it gets the bias, or null, and where
    /// each row goes. What is too much in the last group of the matrix is left out afterwards.
    ///
    /// # Safety
    /// No other thread may access these columns; `write` must write to all of them and nothing else.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) unsafe fn put<const M: usize>(
        &self,
        group: usize,
        count: usize,
        row: usize,
        write: impl FnOnce(*const f32, [*mut f32; M]),
    ) {
        let start = (self.first_group + group) * ROWS;
        let len = (count * ROWS).min(self.columns - start);
        // SAFETY: the caller's promise.
        let rows: [_; M] =
            std::array::from_fn(|m| unsafe { self.out.segment(row + m, start, len) });
        let bias = self.bias.map(|bias| &bias[start..][..len]);
        if len == count * ROWS {
            let bias = bias.map_or(std::ptr::null(), <[f32]>::as_ptr);
            write(bias, rows.map(<[f32]>::as_mut_ptr));
        } else {
            let mut whole_bias = [0.0; 4 * ROWS];
            let mut whole_rows = [[0.0; 4 * ROWS]; M];
            if let Some(bias) = bias {
                whole_bias[..len].copy_from_slice(bias);
            }
            let bias = bias.map_or(std::ptr::null(), |_| whole_bias.as_ptr());
            write(bias, whole_rows.each_mut().map(|row| row.as_mut_ptr()));
            for (row, whole) in rows.into_iter().zip(&whole_rows) {
                row.copy_from_slice(&whole[..len]);
            }
        }
    }
}
