//! Who owns which block of keys and values: running sequences, the tree of prefixes that were computed before, or nobody.
//!
//! A block holds 32 positions of one layer, so a sequence takes one for each layer where its tokens begin 32 new positions. A
//! layer with a sliding window gives those back that no later token sees. Full blocks are remembered by the tokens before and in
//! them; a sequence that begins with the same tokens reads them instead of computing them again. What only the tree holds goes,
//! the longest unused first, when the free blocks run out.

use std::sync::{Arc, Weak};

use model::{KEY_BLOCK, LoadedAdapter, ModelConfig};

use crate::handle::CachePlan;
use crate::prefix::{PrefixTree, Root};

/// A place in a table whose block was given back. No block of a cache, so that a kernel that looked at it would panic.
const NO_BLOCK: u32 = u32::MAX;

/// Tokens that a sequence begins with, and the adapter that their keys and values were computed with.
pub(crate) type Beginning<'a> = (&'a [u32], Option<&'a Arc<LoadedAdapter>>);

/// The blocks of one sequence.
#[derive(Debug, Default)]
pub(crate) struct SequenceBlocks {
    /// Per layer by position / 32; [`NO_BLOCK`] where the window has passed.
    tables: Vec<Vec<u32>>,
    /// Per layer the first block that it still has.
    first_kept: Vec<usize>,
    n_held: usize,
}

impl SequenceBlocks {
    /// Per layer the blocks by position / 32.
    pub(crate) fn tables(&self) -> &[Vec<u32>] {
        &self.tables
    }

    /// Positions that there are blocks for.
    fn end(&self) -> usize {
        self.tables.first().map_or(0, Vec::len) * KEY_BLOCK
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Owners {
    n_sequences: u32,
    in_tree: bool,
}

/// All blocks of an engine.
#[derive(Debug)]
pub(crate) struct BlockPool {
    plan: CachePlan,
    free: Vec<u32>,
    owners: Vec<Owners>,
    /// Layers with a window, which pass blocks.
    windowed_layers: Vec<usize>,
    /// Blocks that the tree alone holds.
    n_reclaimable: usize,
    prefixes: PrefixTree,
    /// Adapters that there are or were beginnings of. The weak pointers keep their addresses from becoming those of others.
    adapters: Vec<Weak<LoadedAdapter>>,
}

impl BlockPool {
    pub(crate) fn new(plan: CachePlan) -> Self {
        let last = u32::try_from(plan.n_blocks).expect("fewer than 2^32 blocks");
        assert!(last < NO_BLOCK, "a block is not the mark of none");
        // The lowest first: what was used a moment ago is likelier to be in the processor's cache.
        let free = (0..last).rev().collect();
        let owners = vec![Owners::default(); plan.n_blocks];
        let config = &plan.config;
        let windowed_layers = (0..config.n_layers)
            .filter(|&layer_idx| config.sliding_window(layer_idx).is_some())
            .collect();
        Self {
            plan,
            free,
            owners,
            windowed_layers,
            n_reclaimable: 0,
            prefixes: PrefixTree::default(),
            adapters: Vec::new(),
        }
    }

    /// Bytes that the lists for `n_blocks` blocks take at most: free ones, owners, the tree.
    pub(crate) fn bookkeeping_bytes(config: &ModelConfig, n_blocks: usize) -> usize {
        let per_block = size_of::<u32>() + size_of::<Owners>();
        let n_nodes = n_blocks / config.n_layers;
        n_blocks * per_block + n_nodes * PrefixTree::bytes_per_node(config.n_layers)
    }

    /// Bytes of the tables of one sequence of up to `max_len` tokens.
    pub(crate) fn table_bytes(config: &ModelConfig, max_len: usize) -> usize {
        let per_layer = size_of::<Vec<u32>>() + max_len.div_ceil(KEY_BLOCK) * size_of::<u32>();
        config.n_layers * (per_layer + size_of::<usize>())
    }

    /// Blocks that a sequence may still ask for until it has `n_tokens` tokens.
    pub(crate) fn missing(&self, sequence: &SequenceBlocks, n_tokens: usize) -> usize {
        self.plan.blocks_for(n_tokens).saturating_sub(sequence.n_held)
    }

    /// Blocks that can be had now: free ones, and those that only the tree holds.
    pub(crate) fn n_available(&self) -> usize {
        self.free.len() + self.n_reclaimable
    }

    /// The place of the prefixes of an adapter, or of none, in the tree.
    fn root(&mut self, adapter: Option<&Arc<LoadedAdapter>>) -> Root {
        let Some(adapter) = adapter else { return Root::Base };
        let found = self.adapters.iter().position(|known| known.as_ptr() == Arc::as_ptr(adapter));
        Root::Adapter(found.unwrap_or_else(|| self.add_adapter(adapter)))
    }

    /// A place for an adapter: that of one that is gone with all that was computed with it, or a new one.
    fn add_adapter(&mut self, adapter: &Arc<LoadedAdapter>) -> usize {
        let (adapters, prefixes) = (&mut self.adapters, &self.prefixes);
        let is_vacant = |&idx: &usize| {
            adapters[idx].strong_count() == 0 && !prefixes.has_root(Root::Adapter(idx))
        };
        let vacant = (0..adapters.len()).find(is_vacant);
        let place = vacant.unwrap_or_else(|| {
            adapters.push(Weak::new());
            adapters.len() - 1
        });
        adapters[place] = Arc::downgrade(adapter);
        place
    }

    /// Takes the blocks of the longest computed part of a beginning, but for the last token, whose logits are wanted; also gives
    /// how many tokens they hold. The sequence may grow to `max_len` tokens.
    pub(crate) fn reuse(
        &mut self,
        (token_ids, adapter): Beginning<'_>,
        max_len: usize,
    ) -> (SequenceBlocks, usize) {
        let root = self.root(adapter);
        let n_layers = self.plan.config.n_layers;
        let table = || Vec::with_capacity(max_len.div_ceil(KEY_BLOCK));
        let mut sequence = SequenceBlocks {
            tables: (0..n_layers).map(|_| table()).collect(),
            first_kept: vec![0; n_layers],
            n_held: 0,
        };
        let reusable = &token_ids[..token_ids.len().saturating_sub(1)];
        for blocks in self.prefixes.matching(root, reusable) {
            for (table, &block) in sequence.tables.iter_mut().zip(blocks) {
                table.push(block);
            }
        }
        let n_reused = sequence.end();
        for layer_idx in 0..n_layers {
            let first = self.first_needed(layer_idx, n_reused);
            let (passed, kept) = sequence.tables[layer_idx].split_at_mut(first);
            passed.fill(NO_BLOCK);
            sequence.first_kept[layer_idx] = first;
            sequence.n_held += kept.len();
            for &mut block in kept {
                self.owners[block as usize].n_sequences += 1;
                // The tree holds it, so it was not free.
                if self.owners[block as usize].n_sequences == 1 {
                    self.n_reclaimable -= 1;
                }
            }
        }
        (sequence, n_reused)
    }

    /// Takes blocks so that the sequence has room for its first `end` positions. False, and nothing taken, if there are too few.
    #[must_use]
    pub(crate) fn extend(&mut self, sequence: &mut SequenceBlocks, end: usize) -> bool {
        let n_new = end.div_ceil(KEY_BLOCK).saturating_sub(sequence.end() / KEY_BLOCK);
        let n_needed = n_new * self.plan.config.n_layers;
        if n_needed > self.n_available() {
            return false;
        }
        while self.free.len() < n_needed {
            self.forget_oldest();
        }
        for table in &mut sequence.tables {
            for _ in 0..n_new {
                let block = self.free.pop().expect("as many were free as are needed");
                self.owners[block as usize].n_sequences = 1;
                table.push(block);
            }
        }
        sequence.n_held += n_needed;
        true
    }

    /// As [`BlockPool::extend`], of blocks that nobody holds, the tree neither.
    #[must_use]
    pub(crate) fn extend_with_free(&mut self, sequence: &mut SequenceBlocks, end: usize) -> bool {
        let n_new = end.div_ceil(KEY_BLOCK).saturating_sub(sequence.end() / KEY_BLOCK);
        n_new * self.plan.config.n_layers <= self.free.len() && self.extend(sequence, end)
    }

    /// Drops the leaf of the tree that was unused the longest, of those that make room.
    fn forget_oldest(&mut self) {
        let owners = &self.owners;
        let is_useful = |block: u32| owners[block as usize].n_sequences == 0;
        let blocks = self.prefixes.remove_oldest(is_useful);
        let blocks = blocks.expect("reclaimable blocks are in the tree");
        for &block in &blocks {
            let owners = &mut self.owners[block as usize];
            owners.in_tree = false;
            if owners.n_sequences == 0 {
                self.n_reclaimable -= 1;
                self.free.push(block);
            }
        }
    }

    /// Remembers the full blocks of a sequence whose first tokens have been computed.
    pub(crate) fn remember(
        &mut self,
        sequence: &SequenceBlocks,
        (token_ids, adapter): Beginning<'_>,
    ) {
        let root = self.root(adapter);
        let owners = &mut self.owners;
        self.prefixes.insert(root, token_ids, |block_idx| {
            let blocks: Box<[u32]> = sequence.tables.iter().map(|table| table[block_idx]).collect();
            if blocks.contains(&NO_BLOCK) {
                return None;
            }
            for &block in &blocks {
                owners[block as usize].in_tree = true;
            }
            Some(blocks)
        });
    }

    /// Gives back the blocks that no token from `position` on sees.
    pub(crate) fn release_passed(&mut self, sequence: &mut SequenceBlocks, position: usize) {
        for idx in 0..self.windowed_layers.len() {
            let layer_idx = self.windowed_layers[idx];
            let first = self.first_needed(layer_idx, position);
            for block_idx in sequence.first_kept[layer_idx]..first {
                let block = std::mem::replace(&mut sequence.tables[layer_idx][block_idx], NO_BLOCK);
                self.disown(block);
                sequence.n_held -= 1;
            }
            sequence.first_kept[layer_idx] = first;
        }
    }

    /// Gives back all blocks of a sequence.
    pub(crate) fn release(&mut self, sequence: SequenceBlocks) {
        for (table, first) in sequence.tables.iter().zip(sequence.first_kept) {
            // The last first, so that a sequence of the same length takes them in the same order again.
            for &block in table[first..].iter().rev() {
                self.disown(block);
            }
        }
    }

    fn disown(&mut self, block: u32) {
        let owners = &mut self.owners[block as usize];
        owners.n_sequences -= 1;
        match (owners.n_sequences, owners.in_tree) {
            (0, true) => self.n_reclaimable += 1,
            (0, false) => self.free.push(block),
            _ => {}
        }
    }

    /// The first block of a layer that the token at `position` sees.
    fn first_needed(&self, layer_idx: usize, position: usize) -> usize {
        self.plan.config.layer_heads(layer_idx).first_visible(position) / KEY_BLOCK
    }

    /// Blocks that nobody holds, that running sequences hold, and that the tree alone holds.
    #[cfg(test)]
    pub(crate) fn census(&self) -> (usize, usize, usize) {
        let held = self.owners.iter().filter(|owners| owners.n_sequences > 0).count();
        let tree_only =
            self.owners.iter().filter(|owners| owners.n_sequences == 0 && owners.in_tree).count();
        assert_eq!(tree_only, self.n_reclaimable, "counted as they come and go");
        assert_eq!(self.free.len() + held + tree_only, self.owners.len(), "each block once");
        (self.free.len(), held, tree_only)
    }
}

#[cfg(test)]
mod tests {
    use tensor::DType;

    use super::*;

    const STEP: usize = 64;
    const MAX_LEN: usize = 4096;

    fn pool(n_blocks: usize, windows: [Option<usize>; 2]) -> BlockPool {
        let mut config = ModelConfig::example();
        config.context_len = MAX_LEN;
        config.sliding_windows = windows.to_vec();
        let config = ModelConfig::new(config).unwrap();
        let cache_kind = model::CacheKind::Operands;
        BlockPool::new(CachePlan {
            config,
            dtype: DType::F32,
            cache_kind,
            step_tokens: STEP,
            n_blocks,
        })
    }

    /// Computes `token_ids` in pieces of the step.
    fn compute(pool: &mut BlockPool, token_ids: &[u32]) -> (SequenceBlocks, usize) {
        let (mut sequence, n_reused) = pool.reuse((token_ids, None), MAX_LEN);
        let mut n_cached = n_reused;
        while n_cached < token_ids.len() {
            n_cached = token_ids.len().min(n_cached + STEP);
            assert!(pool.extend(&mut sequence, n_cached), "there are blocks enough");
            pool.remember(&sequence, (&token_ids[..n_cached], None));
            pool.release_passed(&mut sequence, n_cached);
        }
        (sequence, n_reused)
    }

    fn ids(n: u32) -> Vec<u32> {
        (0..n).collect()
    }

    #[test]
    fn a_prefix_is_computed_once_and_its_blocks_are_shared() {
        let mut pool = pool(40, [None, None]);
        let (first, n_reused) = compute(&mut pool, &ids(100));
        assert_eq!((n_reused, pool.census()), (0, (32, 8, 0)));
        let longer: Vec<u32> = ids(97).into_iter().chain([7, 7, 7]).collect();
        let (second, n_reused) = compute(&mut pool, &longer);
        assert_eq!((n_reused, pool.census()), (96, (30, 10, 0)));
        assert_eq!(first.tables()[0][..3], second.tables()[0][..3]);
        assert_ne!(first.tables()[1][3], second.tables()[1][3]);
        pool.release(first);
        assert_eq!(pool.census(), (32, 8, 0));
        pool.release(second);
        assert_eq!(pool.census(), (34, 0, 6));
    }

    #[test]
    fn the_last_token_of_a_prompt_is_always_computed() {
        let mut pool = pool(40, [None, None]);
        let (first, _) = compute(&mut pool, &ids(64));
        pool.release(first);
        assert_eq!(compute(&mut pool, &ids(64)).1, 32);
        assert_eq!(compute(&mut pool, &ids(65)).1, 64);
    }

    #[test]
    fn what_only_the_tree_holds_makes_room_the_longest_unused_first() {
        let mut pool = pool(12, [None, None]);
        let other: Vec<u32> = (100..164).collect();
        for prompt in [&ids(64), &other, &ids(64)] {
            let (sequence, _) = compute(&mut pool, prompt);
            pool.release(sequence);
        }
        assert_eq!(pool.census(), (4, 0, 8));
        // Six blocks: two more than are free, which the end of `other` gives.
        let (sequence, _) = compute(&mut pool, &[9; 96]);
        assert_eq!(pool.census().0, 0);
        pool.release(sequence);
        assert_eq!(pool.reuse((&ids(65), None), MAX_LEN).1, 64);
        assert_eq!(pool.reuse((&(100..165).collect::<Vec<u32>>(), None), MAX_LEN).1, 32);
    }

    #[test]
    fn a_sequence_that_cannot_have_all_its_blocks_takes_none() {
        let mut pool = pool(6, [None, None]);
        let (mut sequence, _) = pool.reuse((&ids(200), None), MAX_LEN);
        assert!(pool.extend(&mut sequence, 64));
        assert!(!pool.extend(&mut sequence, 65 + KEY_BLOCK));
        assert_eq!(pool.census(), (2, 4, 0));
        assert!(pool.extend(&mut sequence, 96));
        assert_eq!(pool.missing(&sequence, 96), 0);
        assert_eq!(pool.missing(&sequence, 97), 2);
    }

    #[test]
    fn a_window_gives_back_what_it_has_passed_and_needs_no_more_than_was_counted() {
        let windows = [Some(40), None];
        let mut pool = pool(200, windows);
        let (mut sequence, _) = pool.reuse((&ids(1), None), MAX_LEN);
        let mut most = 0;
        for end in (1..=1000).step_by(13) {
            assert!(pool.extend(&mut sequence, end));
            most = most.max(sequence.n_held);
            assert!(sequence.n_held <= pool.plan.blocks_for(end), "{end}");
            pool.release_passed(&mut sequence, end);
        }
        assert!(most < 40, "{most}");
        assert_eq!(sequence.tables()[0][0], NO_BLOCK);
        pool.release(sequence);
        assert_eq!(pool.census(), (200, 0, 0));
    }

    #[test]
    fn a_reused_prefix_holds_only_what_the_window_reaches() {
        let mut pool = pool(200, [Some(40), None]);
        let (first, _) = compute(&mut pool, &ids(400));
        pool.release(first);
        let (sequence, n_reused) = pool.reuse((&ids(400), None), MAX_LEN);
        assert_eq!(n_reused, 384);
        // The token at 384 sees 345 to 384: from block 10 on, of the 12 that there are.
        assert_eq!(sequence.n_held, 12 + 2);
        assert_eq!(sequence.tables()[0][9], NO_BLOCK);
        pool.release(sequence);
        pool.census();
    }
}
