//! Reads which keys a mask lets a query see.

/// Values below this hide a key; exports use -inf, the smallest float of their type, or -10000.
const HIDDEN: f64 = -9e3;

/// How many keys back each query sees: `None` for all, or why the mask is no causal mask.
///
/// `mask` is `[tokens, total]`; the queries are the last `tokens` of `total` positions.
pub(super) fn window(mask: &[f64], tokens: usize, total: usize) -> Result<Option<usize>, String> {
    let past = total - tokens;
    let mut found = None;
    for token in 0..tokens {
        let row = &mask[token * total..(token + 1) * total];
        let position = past + token;
        let visible = |key: usize| row[key] > HIDDEN;
        let Some(first) = (0..total).find(|&key| visible(key)) else {
            return Err("a query sees no key at all".into());
        };
        if (0..total).any(|key| visible(key) != (first..=position).contains(&key)) {
            return Err(
                "it is not causal: what a query sees is not the run of keys up to its own position"
                    .into(),
            );
        }
        if (first..=position).any(|key| row[key].abs() > 1e-6) {
            return Err("it adds to the scores of visible keys (ALiBi and relative position biases are not supported)".into());
        }
        if first > 0 {
            let window = position - first + 1;
            if found.is_some_and(|held| held != window) {
                return Err("its window changes from query to query".into());
            }
            found = Some(window);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(tokens: usize, total: usize, visible: impl Fn(usize, usize) -> bool) -> Vec<f64> {
        (0..tokens)
            .flat_map(|token| (0..total).map(move |key| (token, key)))
            .map(|(token, key)| {
                if visible(total - tokens + token, key) {
                    0.0
                } else {
                    f64::NEG_INFINITY
                }
            })
            .collect()
    }

    #[test]
    fn a_causal_mask_has_no_window() {
        assert_eq!(
            window(&mask(3, 8, |query, key| key <= query), 3, 8),
            Ok(None)
        );
    }

    #[test]
    fn a_sliding_window_is_counted_with_the_query_itself() {
        assert_eq!(
            window(
                &mask(3, 8, |query, key| key <= query && key + 4 > query),
                3,
                8
            ),
            Ok(Some(4))
        );
    }

    #[test]
    fn a_mask_that_shows_the_future_is_refused() {
        assert!(window(&mask(3, 8, |_, _| true), 3, 8).is_err());
    }

    #[test]
    fn a_bias_is_refused() {
        let mut values = mask(1, 4, |query, key| key <= query);
        values[1] = -0.5;
        assert!(window(&values, 1, 4).is_err());
    }
}
