//! A paged cache: pages of 64 positions per layer, allocated when first written.

use niwaki_bundle::graph::KvLayer;
use niwaki_kernels::{Kernels, KvElement, KvFormat, KvPage, PAGE_TOKENS, Rows};
use std::sync::Arc;

/// Keys and values of every layer.
///
/// Pages are shared: a clone costs no page until one of the two writes to it.
#[derive(Clone, Default)]
pub(crate) struct KvCache {
    layers: Vec<LayerCache>,
    len: usize,
}

#[derive(Clone)]
struct LayerCache {
    format: KvFormat,
    page_bytes: usize,
    window: Option<usize>,
    /// Whether pages stay for the runs that follow.
    cached: bool,
    /// Indexed by position / [`PAGE_TOKENS`].
    pages: Vec<Page>,
}

/// One page, or nothing where it was dropped.
#[derive(Clone, Default)]
pub(crate) struct Page(Option<Arc<KvPage>>);

impl AsRef<[u8]> for Page {
    fn as_ref(&self) -> &[u8] {
        self.0.as_deref().map_or(&[], AsRef::as_ref)
    }
}

/// Why keys and values could not be stored, or given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CacheError {
    /// The system has no memory for a page.
    #[error("no memory for a page of {0} bytes of keys and values")]
    OutOfMemory(usize),
    /// A page is larger than the address space, or rows do not have its width.
    #[error("keys and values do not fit the layer's pages")]
    Format,
}

impl KvCache {
    /// An empty cache; allocates nothing but the list of layers.
    pub(crate) fn new(layers: &[KvLayer], element: KvElement) -> Result<Self, CacheError> {
        let layers = layers
            .iter()
            .map(|layer| {
                let format = kv_format(layer, element);
                let page_bytes = format.page_bytes().ok_or(CacheError::Format)?;
                Ok(LayerCache {
                    format,
                    page_bytes,
                    window: layer.window,
                    cached: layer.cached,
                    pages: Vec::new(),
                })
            })
            .collect::<Result<_, CacheError>>()?;
        Ok(KvCache { layers, len: 0 })
    }

    /// Number of positions that are kept for good.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Writes the keys and values of consecutive positions from [`len`](Self::len) on, one per row. They
    /// count only after [`advance`](Self::advance).
    pub(crate) fn write(
        &mut self,
        kernels: &Kernels,
        layer: usize,
        keys: &Rows,
        values: &Rows,
    ) -> Result<(), CacheError> {
        let first = self.len;
        let layer = self.layers.get_mut(layer).ok_or(CacheError::Format)?;
        let width = layer.format.kv_heads * layer.format.head_dim;
        if keys.width() != width || values.width() != width || keys.rows() != values.rows() {
            return Err(CacheError::Format);
        }
        let format = layer.format;
        let mut row = 0;
        while row < keys.rows() {
            let position = first + row;
            let page = layer.page_mut(position / PAGE_TOKENS)?;
            let slots = position % PAGE_TOKENS..PAGE_TOKENS;
            for (slot, row) in slots.clone().zip(row..keys.rows()) {
                kernels.write_kv(&format, page, slot, keys.row(row), values.row(row));
            }
            row += slots.len();
        }
        Ok(())
    }

    /// The shape and the pages of a layer, indexed by position / [`PAGE_TOKENS`].
    pub(crate) fn layer(&self, layer: usize) -> Option<(KvFormat, &[Page])> {
        self.layers
            .get(layer)
            .map(|layer| (layer.format, layer.pages.as_slice()))
    }

    /// Keeps `tokens` more positions, and drops the pages no later query sees.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
        for layer in &mut self.layers {
            if !layer.cached {
                layer.pages.clear();
            }
            let Some(window) = layer.window else { continue };
            let unseen = (self.len + 1).saturating_sub(window) / PAGE_TOKENS;
            for page in layer.pages.iter_mut().take(unseen) {
                *page = Page::default();
            }
        }
    }

    /// Forgets every position from `len` on. False, with nothing changed, when a page that a query at `len`
    /// sees was dropped.
    pub(crate) fn truncate(&mut self, len: usize) -> bool {
        // A run that failed leaves what it wrote of a layer that keeps nothing.
        for layer in self.layers.iter_mut().filter(|layer| !layer.cached) {
            layer.pages.clear();
        }
        if len >= self.len {
            return true;
        }
        let complete = self.layers.iter().all(|layer| {
            let first_seen = layer
                .window
                .map_or(0, |window| (len + 1).saturating_sub(window));
            let seen = first_seen / PAGE_TOKENS..len.div_ceil(PAGE_TOKENS);
            // A layer that keeps nothing, or whose attention does not lead to an output, has no pages at all.
            layer.pages.is_empty()
                || layer
                    .pages
                    .get(seen)
                    .is_some_and(|pages| pages.iter().all(|page| page.0.is_some()))
        });
        if complete {
            for layer in &mut self.layers {
                layer.pages.truncate(len.div_ceil(PAGE_TOKENS));
            }
            self.len = len;
        }
        complete
    }

    /// Bytes of the pages that exist.
    pub(crate) fn size_bytes(&self) -> usize {
        let pages = |layer: &LayerCache| layer.pages.iter().filter(|page| page.0.is_some()).count();
        self.layers
            .iter()
            .map(|layer| pages(layer) * layer.page_bytes)
            .sum()
    }
}

impl LayerCache {
    fn page_mut(&mut self, index: usize) -> Result<&mut [u8], CacheError> {
        if index >= self.pages.len() {
            self.pages.resize(index + 1, Page::default());
        }
        let page = self.pages.get_mut(index).ok_or(CacheError::Format)?;
        let page = match &mut page.0 {
            Some(page) => page,
            empty => {
                let page = KvPage::new(self.page_bytes)
                    .map_err(|_| CacheError::OutOfMemory(self.page_bytes))?;
                empty.insert(Arc::new(page))
            }
        };
        Ok(Arc::make_mut(page).as_mut())
    }
}

fn kv_format(layer: &KvLayer, element: KvElement) -> KvFormat {
    KvFormat {
        kv_heads: layer.kv_heads,
        head_dim: layer.head_dim,
        element,
    }
}

/// Most bytes the pages of `layers` take while a context of `context_tokens` fills up in chunks of at most
/// `chunk_tokens`.
pub(crate) fn pages_at_peak(
    layers: &[KvLayer],
    element: KvElement,
    context_tokens: usize,
    chunk_tokens: usize,
) -> u64 {
    let bytes = |layer: &KvLayer| {
        let all = context_tokens.div_ceil(PAGE_TOKENS);
        let pages = match layer.window {
            // Before a chunk the pages of window - 1 positions are there, at worst cut unluckily.
            Some(window) => all.min(
                window
                    .saturating_add(chunk_tokens)
                    .div_ceil(PAGE_TOKENS)
                    .saturating_add(1),
            ),
            None => all,
        };
        let page = kv_format(layer, element)
            .page_bytes()
            .map_or(u64::MAX, |bytes| bytes as u64);
        page.saturating_mul(pages as u64)
    };
    layers
        .iter()
        .fold(0, |sum: u64, layer| sum.saturating_add(bytes(layer)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use niwaki_kernels::{Isa, ThreadPool};

    const WIDTH: usize = 32;

    fn kernels() -> Kernels {
        Kernels::new(Isa::Scalar, Arc::new(ThreadPool::new(1))).unwrap()
    }

    fn layer(window: Option<usize>) -> KvLayer {
        KvLayer {
            window,
            ..KvLayer::decoder(2, WIDTH / 2)
        }
    }

    fn feed(cache: &mut KvCache, from: usize, tokens: usize) {
        let rows: Vec<f32> = (from..from + tokens)
            .flat_map(|position| [position as f32; WIDTH])
            .collect();
        let rows = Rows::contiguous(&rows, tokens, WIDTH);
        for layer in 0..cache.layers.len() {
            cache.write(&kernels(), layer, &rows, &rows).unwrap();
        }
        cache.advance(tokens);
    }

    fn pages(cache: &KvCache, layer: usize) -> Vec<bool> {
        cache.layers[layer]
            .pages
            .iter()
            .map(|page| page.0.is_some())
            .collect()
    }

    #[test]
    fn pages_come_when_written_and_go_when_every_position_left_the_window() {
        let mut cache = KvCache::new(&[layer(None), layer(Some(64))], KvElement::F16).unwrap();
        assert_eq!(cache.size_bytes(), 0);
        feed(&mut cache, 0, 127);
        // A query at 127 sees positions from 64 on.
        assert_eq!(pages(&cache, 0), [true, true]);
        assert_eq!(pages(&cache, 1), [false, true]);
        feed(&mut cache, 127, 2);
        assert_eq!(pages(&cache, 0), [true, true, true]);
        // A query at 129 sees positions from 66 on.
        assert_eq!(pages(&cache, 1), [false, true, true]);
    }

    #[test]
    fn truncating_keeps_what_a_window_still_needs_or_refuses() {
        let mut cache = KvCache::new(&[layer(None), layer(Some(64))], KvElement::F32).unwrap();
        feed(&mut cache, 0, 200);
        assert!(
            !cache.truncate(100),
            "position 37 was dropped by the window"
        );
        assert_eq!(cache.len(), 200);
        assert!(cache.truncate(195));
        assert_eq!(cache.len(), 195);
        assert!(cache.truncate(300), "nothing to forget");
        assert_eq!(cache.len(), 195);
        assert!(!cache.truncate(1));
    }

    #[test]
    fn a_clone_shares_pages_until_one_side_writes() {
        let mut cache = KvCache::new(&[layer(None)], KvElement::F32).unwrap();
        feed(&mut cache, 0, 70);
        let before = cache.clone();
        feed(&mut cache, 70, 1);
        let shared = |page: usize| {
            Arc::ptr_eq(
                cache.layers[0].pages[page].0.as_ref().unwrap(),
                before.layers[0].pages[page].0.as_ref().unwrap(),
            )
        };
        assert!(shared(0));
        assert!(!shared(1));
    }

    #[test]
    fn the_planned_pages_are_never_exceeded() {
        let layers = [layer(None), layer(Some(100))];
        for chunk in [1, 7, 64, 100] {
            let mut cache = KvCache::new(&layers, KvElement::F16).unwrap();
            let mut position = 0;
            while position < 500 {
                let tokens = chunk.min(500 - position);
                let rows = vec![0.0; tokens * WIDTH];
                let rows = Rows::contiguous(&rows, tokens, WIDTH);
                cache.write(&kernels(), 0, &rows, &rows).unwrap();
                cache.write(&kernels(), 1, &rows, &rows).unwrap();
                assert!(
                    cache.size_bytes() as u64 <= pages_at_peak(&layers, KvElement::F16, 500, chunk)
                );
                cache.advance(tokens);
                position += tokens;
            }
        }
    }
}
