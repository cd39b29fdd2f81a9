//! Which beginnings of token sequences have been computed, and where their keys and values are.

use std::collections::{BTreeSet, HashMap};

use model::KEY_BLOCK;

/// A tree whose nodes are runs of 32 tokens after the runs above them. Keyed by the tokens themselves, not by a digest of them, so
/// that no two prefixes can be taken for one.
#[derive(Debug, Default)]
pub(crate) struct PrefixTree {
    nodes: Vec<Option<Node>>,
    vacant: Vec<u32>,
    by_key: HashMap<Key, u32>,
    /// Nodes without children, by when they were last used.
    leaves: BTreeSet<(u64, u32)>,
    /// Counts uses.
    clock: u64,
}

/// What the keys and values of a sequence's beginning were computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Root {
    /// The weights alone.
    Base,
    /// An adapter, by its place in a list.
    Adapter(usize),
}

/// What comes before a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Parent {
    Root(Root),
    Node(u32),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    parent: Parent,
    token_ids: [u32; KEY_BLOCK],
}

#[derive(Debug)]
struct Node {
    key: Key,
    /// One for each layer.
    blocks: Box<[u32]>,
    n_children: u32,
    last_used: u64,
}

impl PrefixTree {
    /// Bytes that a node takes at most. A list has grown to twice of what it holds at most; a hash table, with a mark for each
    /// place, to 16/7 of that, and while it grows there is half of it again; the nodes of a B-tree are at least 5/11 full, with a pointer or two
    /// for each number.
    pub(crate) fn bytes_per_node(n_layers: usize) -> usize {
        let lists = 2 * (size_of::<Option<Node>>() + size_of::<u32>());
        let table = 4 * (size_of::<(Key, u32)>() + 1);
        let leaves = 3 * (size_of::<(u64, u32)>() + 2 * size_of::<usize>());
        lists + table + leaves + n_layers * size_of::<u32>()
    }

    /// Whether a prefix of this root is known.
    pub(crate) fn has_root(&self, root: Root) -> bool {
        self.nodes.iter().flatten().any(|node| node.key.parent == Parent::Root(root))
    }

    /// The blocks of the longest known prefix of `token_ids`, 32 tokens after 32 tokens.
    pub(crate) fn matching(&mut self, root: Root, token_ids: &[u32]) -> Vec<&[u32]> {
        self.clock += 1;
        let mut path = Vec::new();
        let mut parent = Parent::Root(root);
        for run in token_ids.as_chunks::<KEY_BLOCK>().0 {
            let Some(&node) = self.by_key.get(&Key { parent, token_ids: *run }) else { break };
            self.touch(node);
            path.push(node);
            parent = Parent::Node(node);
        }
        path.into_iter().map(|node| &*self.node(node).blocks).collect()
    }

    /// Adds the whole runs of `token_ids` that are not known. `blocks(i)` gives the blocks of run i, or none if they are gone, which
    /// ends the insertion.
    pub(crate) fn insert(
        &mut self,
        root: Root,
        token_ids: &[u32],
        mut blocks: impl FnMut(usize) -> Option<Box<[u32]>>,
    ) {
        self.clock += 1;
        let mut parent = Parent::Root(root);
        for (i, run) in token_ids.as_chunks::<KEY_BLOCK>().0.iter().enumerate() {
            let key = Key { parent, token_ids: *run };
            let node = match self.by_key.get(&key) {
                Some(&node) => {
                    self.touch(node);
                    node
                }
                None => {
                    let Some(blocks) = blocks(i) else { return };
                    self.add(key, blocks)
                }
            };
            parent = Parent::Node(node);
        }
    }

    fn add(&mut self, key: Key, blocks: Box<[u32]>) -> u32 {
        if let Parent::Node(parent) = key.parent {
            let node = self.node_mut(parent);
            node.n_children += 1;
            let leaf = (node.last_used, parent);
            self.leaves.remove(&leaf);
        }
        let node = Node { key: key.clone(), blocks, n_children: 0, last_used: self.clock };
        let id = match self.vacant.pop() {
            Some(id) => {
                self.nodes[id as usize] = Some(node);
                id
            }
            None => {
                self.nodes.push(Some(node));
                u32::try_from(self.nodes.len() - 1).expect("no more nodes than blocks")
            }
        };
        self.by_key.insert(key, id);
        self.leaves.insert((self.clock, id));
        id
    }

    /// Notes that a node is used now.
    fn touch(&mut self, id: u32) {
        let clock = self.clock;
        let node = self.node_mut(id);
        let last_used = std::mem::replace(&mut node.last_used, clock);
        if self.leaves.remove(&(last_used, id)) {
            self.leaves.insert((clock, id));
        }
    }

    /// Takes out the leaf that was unused the longest and gives its blocks, one with useful blocks if there is any. O(log nodes), and so many
    /// more as older leaves have no useful blocks.
    pub(crate) fn remove_oldest(&mut self, is_useful: impl Fn(u32) -> bool) -> Option<Box<[u32]>> {
        let has_useful =
            |&&(_, id): &&(u64, u32)| self.node(id).blocks.iter().any(|&block| is_useful(block));
        let leaf = *self.leaves.iter().find(has_useful).or_else(|| self.leaves.first())?;
        self.leaves.remove(&leaf);
        let (_, id) = leaf;
        let node = self.nodes[id as usize].take().expect("a leaf is a node");
        self.by_key.remove(&node.key);
        self.vacant.push(id);
        if let Parent::Node(parent) = node.key.parent {
            let node = self.node_mut(parent);
            node.n_children -= 1;
            if node.n_children == 0 {
                let leaf = (node.last_used, parent);
                self.leaves.insert(leaf);
            }
        }
        Some(node.blocks)
    }

    fn node(&self, id: u32) -> &Node {
        self.nodes[id as usize].as_ref().expect("a node stays while it has children or a key")
    }

    fn node_mut(&mut self, id: u32) -> &mut Node {
        self.nodes[id as usize].as_mut().expect("a node stays while it has children or a key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(n: u32) -> Vec<u32> {
        (0..n).collect()
    }

    fn insert(tree: &mut PrefixTree, token_ids: &[u32], first_block: u32) {
        tree.insert(Root::Base, token_ids, |i| Some(Box::new([first_block + i as u32])));
    }

    fn found(tree: &mut PrefixTree, token_ids: &[u32]) -> Vec<u32> {
        tree.matching(Root::Base, token_ids).concat()
    }

    #[test]
    fn the_longest_known_prefix_is_found_in_whole_runs() {
        let mut tree = PrefixTree::default();
        insert(&mut tree, &ids(100), 10);
        assert_eq!(found(&mut tree, &ids(100)), [10, 11, 12]);
        assert_eq!(found(&mut tree, &ids(64)), [10, 11]);
        assert_eq!(found(&mut tree, &ids(31)), [0_u32; 0]);
        let mut other = ids(96);
        other[40] = 7;
        assert_eq!(found(&mut tree, &other), [10]);
        // The second run of one sequence is not the beginning of another.
        assert_eq!(found(&mut tree, &(32..96).collect::<Vec<u32>>()), [0_u32; 0]);
    }

    #[test]
    fn what_is_known_keeps_its_blocks_and_what_is_new_is_added_below() {
        let mut tree = PrefixTree::default();
        insert(&mut tree, &ids(64), 10);
        insert(&mut tree, &ids(96), 20);
        assert_eq!(found(&mut tree, &ids(96)), [10, 11, 22]);
    }

    #[test]
    fn an_insertion_ends_where_blocks_are_gone() {
        let mut tree = PrefixTree::default();
        tree.insert(Root::Base, &ids(96), |i| (i != 1).then(|| Box::from([i as u32])));
        assert_eq!(found(&mut tree, &ids(96)), [0]);
    }

    #[test]
    fn leaves_with_useful_blocks_go_before_older_ones() {
        let mut tree = PrefixTree::default();
        insert(&mut tree, &[5; 32], 20);
        insert(&mut tree, &ids(32), 10);
        assert_eq!(tree.remove_oldest(|block| block == 10).unwrap()[..], [10]);
        assert_eq!(tree.remove_oldest(|_| false).unwrap()[..], [20]);
        assert!(tree.remove_oldest(|_| true).is_none());
    }

    /// What a scan of all nodes finds to be the leaf that was unused the longest, one with useful blocks if there is any.
    fn oldest(tree: &PrefixTree, is_useful: impl Fn(u32) -> bool) -> Option<Box<[u32]>> {
        let leaves = tree.nodes.iter().flatten().filter(|node| node.n_children == 0);
        let oldest = leaves.min_by_key(|node| {
            (!node.blocks.iter().any(|&block| is_useful(block)), node.last_used)
        });
        oldest.map(|node| node.blocks.clone())
    }

    #[test]
    fn the_order_of_leaves_is_that_of_a_scan_whatever_was_done() {
        let mut tree = PrefixTree::default();
        let mut state = 7_u64;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % n
        };
        for step in 0..2000 {
            // Few different runs, so that sequences share beginnings.
            let runs: Vec<u32> = (0..1 + below(4)).map(|_| below(3) as u32).collect();
            let token_ids: Vec<u32> = runs.iter().flat_map(|&run| [run; KEY_BLOCK]).collect();
            match below(3) {
                0 => insert(&mut tree, &token_ids, 8 * step),
                1 => drop(found(&mut tree, &token_ids)),
                _ => {
                    let odd = below(4) as u32;
                    let is_useful = |block: u32| block / 8 % 4 == odd;
                    let expected = oldest(&tree, is_useful);
                    assert_eq!(tree.remove_oldest(is_useful), expected, "step {step}");
                }
            }
            let n_leaves = tree.nodes.iter().flatten().filter(|node| node.n_children == 0).count();
            assert_eq!(tree.leaves.len(), n_leaves, "step {step}");
        }
        assert!(tree.nodes.len() > 20, "{} places", tree.nodes.len());
    }

    #[test]
    fn leaves_go_in_the_order_of_their_last_use_and_parents_after_them() {
        let mut tree = PrefixTree::default();
        insert(&mut tree, &ids(64), 10);
        insert(&mut tree, &[5; 32], 20);
        let _ = tree.matching(Root::Base, &ids(64));
        let removed: Vec<u32> =
            std::iter::from_fn(|| tree.remove_oldest(|_| true)).map(|blocks| blocks[0]).collect();
        assert_eq!(removed, [20, 11, 10]);
        // Vacant places are used again, and nothing old is found in them.
        insert(&mut tree, &[6; 64], 30);
        assert_eq!(found(&mut tree, &[6; 64]), [30, 31]);
        assert_eq!(found(&mut tree, &ids(64)), [0_u32; 0]);
        assert_eq!(tree.nodes.len(), 3);
    }
}
