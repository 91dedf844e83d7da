//! Several rows become one.

use crate::rows::Rows;

/// The mean of each column: rows are added in ascending order, then the sum is divided by their number. Zeros for no
/// rows at all.
///
/// # Panics
/// If `out` is not as long as the rows.
pub fn mean_row(rows: &Rows<'_>, out: &mut [f32]) {
    assert_eq!(out.len(), rows.width(), "columns of the mean");
    out.fill(0.0);
    for row in 0..rows.rows() {
        for (sum, x) in out.iter_mut().zip(rows.row(row)) {
            *sum += x;
        }
    }
    if rows.rows() > 0 {
        let count = rows.rows() as f32;
        out.iter_mut().for_each(|sum| *sum /= count);
    }
}

#[cfg(test)]
mod tests {
    use super::mean_row;
    use crate::rows::Rows;

    #[test]
    fn each_column_has_a_mean_of_its_own() {
        let data = [1.0, 10.0, 99.0, 2.0, 20.0, 99.0, 6.0, 60.0, 99.0];
        let mut out = [7.0; 2];
        mean_row(&Rows::new(&data, 3, 3, 2), &mut out);
        assert_eq!(out, [3.0, 30.0]);
        mean_row(&Rows::new(&[], 0, 3, 2), &mut out);
        assert_eq!(out, [0.0, 0.0]);
    }
}
