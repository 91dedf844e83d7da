//! Pages of the KV cache: 64 positions of one layer's keys and values.
//!
//! A page holds the keys `[kv_heads][64][head_dim]`, then the values likewise, little-endian; `head_dim`
//! is padded to a multiple of 16 with zeros.

use half::f16;

/// Positions in a page, and in a chunk of attention.
pub const PAGE_TOKENS: usize = 64;

/// What a cached number is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvElement {
    /// IEEE binary32.
    F32,
    /// IEEE binary16, rounded to nearest even.
    F16,
}

impl KvElement {
    /// Bytes of one number.
    pub const fn size_bytes(self) -> usize {
        match self {
            KvElement::F32 => 4,
            KvElement::F16 => 2,
        }
    }
}

/// The shape of one layer's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvFormat {
    /// Number of key/value heads.
    pub kv_heads: usize,
    /// Columns of one head, the same for keys and values.
    pub head_dim: usize,
    /// What a number is stored as.
    pub element: KvElement,
}

impl KvFormat {
    /// Bytes of a page; `None` if that number overflows.
    pub const fn page_bytes(&self) -> Option<usize> {
        let Some(padded) = self.head_dim.checked_next_multiple_of(16) else {
            return None;
        };
        let Some(head) = padded.checked_mul(2 * PAGE_TOKENS * 4) else {
            return None;
        };
        match head.checked_mul(self.kv_heads) {
            Some(bytes) => Some(bytes / 4 * self.element.size_bytes()),
            None => None,
        }
    }

    /// Bytes of one position of one head.
    pub(crate) const fn row_bytes(&self) -> usize {
        self.head_dim.next_multiple_of(16) * self.element.size_bytes()
    }

    /// Bytes of one head's keys, or values, in a page.
    pub(crate) const fn head_bytes(&self) -> usize {
        PAGE_TOKENS * self.row_bytes()
    }

    /// Where the keys of a head start in a page.
    pub(crate) const fn keys_offset(&self, kv_head: usize) -> usize {
        kv_head * self.head_bytes()
    }

    /// Where the values of a head start in a page.
    pub(crate) const fn values_offset(&self, kv_head: usize) -> usize {
        (self.kv_heads + kv_head) * self.head_bytes()
    }

    /// Stores the keys and values of the token at position `slot` of a page, rounding them to the
    /// element type. `key` and `value` are `kv_heads * head_dim` long.
    ///
    /// # Panics
    /// If `slot` is not below [`PAGE_TOKENS`] or a length is wrong.
    pub fn write(&self, page: &mut [u8], slot: usize, key: &[f32], value: &[f32]) {
        assert!(slot < PAGE_TOKENS, "slot {slot} of a page of {PAGE_TOKENS}");
        assert_eq!(Some(page.len()), self.page_bytes(), "length of the page");
        assert_eq!(
            key.len(),
            self.kv_heads * self.head_dim,
            "length of the keys"
        );
        assert_eq!(value.len(), key.len(), "length of the values");
        for kv_head in 0..self.kv_heads {
            let head = kv_head * self.head_dim..(kv_head + 1) * self.head_dim;
            let slot_offset = slot * self.row_bytes();
            self.write_row(
                page,
                self.keys_offset(kv_head) + slot_offset,
                &key[head.clone()],
            );
            self.write_row(
                page,
                self.values_offset(kv_head) + slot_offset,
                &value[head],
            );
        }
    }

    fn write_row(&self, page: &mut [u8], offset: usize, x: &[f32]) {
        let row = &mut page[offset..][..self.row_bytes()];
        let (numbers, padding) = row.split_at_mut(x.len() * self.element.size_bytes());
        padding.fill(0);
        match self.element {
            KvElement::F32 => {
                for (bytes, x) in numbers.as_chunks_mut().0.iter_mut().zip(x) {
                    *bytes = x.to_le_bytes();
                }
            }
            KvElement::F16 => {
                for (bytes, x) in numbers.as_chunks_mut().0.iter_mut().zip(x) {
                    *bytes = f16::from_f32(*x).to_le_bytes();
                }
            }
        }
    }
}
