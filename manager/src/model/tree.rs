//! A sorted map whose copies share what they have in common.
//!
//! A B+ tree of reference-counted nodes: a clone is one count more, and a change to the clone copies
//! the nodes on the way to the changed entry and no others. So the wanted state with a million rules
//! is copied, changed and given up again in microseconds, and two copies are compared by looking only
//! where they differ.
#![forbid(unsafe_code)]

use std::cmp::Ordering;
use std::sync::Arc;

/// Most entries of a node. A change copies one node a level: larger nodes make the copies longer,
/// smaller ones the tree deeper.
const MAX: usize = 32;
/// A node with fewer entries joins its neighbour when both fit one.
const FEW: usize = MAX / 4;

#[derive(Clone, Debug)]
enum Node<K, V> {
    /// Entries by rising key.
    Leaf(Vec<(K, V)>),
    /// Children in order, with separators: a child holds keys from its separator on up to the next
    /// one's; the first child also holds what is smaller.
    Inner(Vec<(K, Arc<Node<K, V>>)>),
}

/// A sorted map; cloning it takes constant time.
#[derive(Clone, Debug)]
pub struct SharedMap<K, V> {
    root: Arc<Node<K, V>>,
    /// Levels of inner nodes above the leaves.
    height: usize,
    len: usize,
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { root: Arc::new(Node::Leaf(Vec::new())), height: 0, len: 0 }
    }
}

/// What a split adds to the parent: the new right node and its separator.
type Split<K, V> = Option<(K, Arc<Node<K, V>>)>;

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value under a key. O(log n).
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        let (found, value) = self.range_from(key).next()?;
        (found == key).then_some(value)
    }

    /// Puts a value under a key; returns the one that was there. O(log n), copying at most 32
    /// entries a level.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (old, split) = insert(&mut self.root, key, value);
        if let Some((separator, right)) = split {
            let left = Arc::clone(&self.root);
            let first = left.first_key().unwrap_or_else(|| separator.clone());
            self.root = Arc::new(Node::Inner(vec![(first, left), (separator, right)]));
            self.height += 1;
        }
        self.len += usize::from(old.is_none());
        old
    }

    /// Takes out what is under a key. O(log n); a key that is not there copies nothing.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.get(key)?;
        let value = remove(&mut self.root, key);
        self.len -= 1;
        while let Node::Inner(children) = &*self.root
            && children.len() == 1
        {
            self.root = Arc::clone(&children[0].1);
            self.height -= 1;
        }
        value
    }

    /// All entries by rising key.
    #[must_use]
    pub fn iter(&self) -> Iter<'_, K, V> {
        let mut iter = Iter { cursor: Cursor::new(self) };
        iter.cursor.settle();
        iter
    }

    /// The entries from `key` on, by rising key.
    #[must_use]
    pub fn range_from(&self, key: &K) -> Iter<'_, K, V> {
        let mut stack = Vec::with_capacity(self.height + 1);
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(entries) => {
                    stack.push((node, entries.partition_point(|(k, _)| k < key)));
                    break;
                }
                Node::Inner(children) => {
                    let at = child_of(children, key);
                    stack.push((node, at));
                    node = &children[at].1;
                }
            }
        }
        let mut iter = Iter { cursor: Cursor { stack, height: self.height } };
        iter.cursor.settle();
        iter
    }

    /// Calls `differs` for each key whose value is not the same in both, by rising key, with the
    /// value here and there. What both share is not looked at: O(changes × log n) for two copies of
    /// one map.
    pub fn differences<'a>(
        &'a self,
        other: &'a Self,
        same: impl Fn(&V, &V) -> bool,
        mut differs: impl FnMut(Option<&'a V>, Option<&'a V>),
    ) {
        if Arc::ptr_eq(&self.root, &other.root) {
            return;
        }
        let (mut a, mut b) = (Cursor::new(self), Cursor::new(other));
        loop {
            match (a.item(), b.item()) {
                (None, None) => return,
                (Some(Item::Child(x, _)), Some(Item::Child(y, _))) if Arc::ptr_eq(x, y) => {
                    a.skip();
                    b.skip();
                }
                // Of two subtrees the higher is opened first, so that shared ones meet.
                (Some(Item::Child(_, x)), Some(Item::Child(_, y))) => {
                    if x >= y {
                        a.open();
                    } else {
                        b.open();
                    }
                }
                (Some(Item::Child(..)), _) => a.open(),
                (_, Some(Item::Child(..))) => b.open(),
                (Some(Item::Entry(entry)), None) => {
                    differs(Some(&entry.1), None);
                    a.skip();
                }
                (None, Some(Item::Entry(entry))) => {
                    differs(None, Some(&entry.1));
                    b.skip();
                }
                (Some(Item::Entry(x)), Some(Item::Entry(y))) => match x.0.cmp(&y.0) {
                    Ordering::Less => {
                        differs(Some(&x.1), None);
                        a.skip();
                    }
                    Ordering::Greater => {
                        differs(None, Some(&y.1));
                        b.skip();
                    }
                    Ordering::Equal => {
                        if !same(&x.1, &y.1) {
                            differs(Some(&x.1), Some(&y.1));
                        }
                        a.skip();
                        b.skip();
                    }
                },
            }
        }
    }
}

/// From entries in any order; of two with the same key the later counts.
impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        // In rising order every insertion ends in the rightmost leaf, which nobody shares yet.
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

impl<K: Clone, V> Node<K, V> {
    fn first_key(&self) -> Option<K> {
        match self {
            Self::Leaf(entries) => entries.first().map(|(key, _)| key.clone()),
            Self::Inner(children) => children.first().map(|(key, _)| key.clone()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Inner(children) => children.len(),
        }
    }
}

/// The child that holds `key` if any does.
fn child_of<K: Ord, C>(children: &[(K, C)], key: &K) -> usize {
    children.partition_point(|(separator, _)| separator <= key).saturating_sub(1)
}

fn insert<K: Ord + Clone, V: Clone>(
    node: &mut Arc<Node<K, V>>,
    key: K,
    value: V,
) -> (Option<V>, Split<K, V>) {
    match Arc::make_mut(node) {
        Node::Leaf(entries) => match entries.binary_search_by(|(k, _)| k.cmp(&key)) {
            Ok(at) => (Some(std::mem::replace(&mut entries[at].1, value)), None),
            Err(at) => {
                let last = at == entries.len();
                entries.insert(at, (key, value));
                (None, split(entries, last, Node::Leaf))
            }
        },
        Node::Inner(children) => {
            let at = child_of(children, &key);
            let (old, extra) = insert(&mut children[at].1, key, value);
            let last = at + 1 == children.len();
            if let Some(extra) = extra {
                children.insert(at + 1, extra);
            }
            (old, split(children, last, Node::Inner))
        }
    }
}

/// Cuts a node that is too long: in the middle, or, when its last entry is the new one, before that,
/// so that keys that rise, as rule numbers do, leave full nodes behind them.
fn split<K: Clone, V, T>(
    entries: &mut Vec<(K, T)>,
    at_end: bool,
    node: impl Fn(Vec<(K, T)>) -> Node<K, V>,
) -> Split<K, V> {
    if entries.len() <= MAX {
        return None;
    }
    let right = entries.split_off(if at_end { MAX } else { MAX / 2 });
    Some((right[0].0.clone(), Arc::new(node(right))))
}

/// Takes out a key that is there.
fn remove<K: Ord + Clone, V: Clone>(node: &mut Arc<Node<K, V>>, key: &K) -> Option<V> {
    match Arc::make_mut(node) {
        Node::Leaf(entries) => {
            let at = entries.binary_search_by(|(k, _)| k.cmp(key)).ok()?;
            Some(entries.remove(at).1)
        }
        Node::Inner(children) => {
            let at = child_of(children, key);
            let value = remove(&mut children[at].1, key);
            if children[at].1.len() < FEW {
                join(children, at);
            }
            value
        }
    }
}

/// Lets the child at `at` and a neighbour become one if they fit; one without entries just goes.
fn join<K: Clone, V: Clone>(children: &mut Vec<(K, Arc<Node<K, V>>)>, at: usize) {
    if children[at].1.len() == 0 && children.len() > 1 {
        children.remove(at);
        return;
    }
    let left = if at + 1 < children.len() { at } else { at.saturating_sub(1) };
    let Some((_, right)) = children.get(left + 1) else { return };
    if children[left].1.len() + right.len() > MAX {
        return;
    }
    let (_, right) = children.remove(left + 1);
    match (Arc::make_mut(&mut children[left].1), &*right) {
        (Node::Leaf(entries), Node::Leaf(more)) => entries.extend_from_slice(more),
        (Node::Inner(entries), Node::Inner(more)) => entries.extend_from_slice(more),
        _ => unreachable!("neighbours are of one level"),
    }
}

/// What a cursor stands before.
enum Item<'a, K, V> {
    /// A whole subtree, and its height.
    Child(&'a Arc<Node<K, V>>, usize),
    /// An entry.
    Entry(&'a (K, V)),
}

/// A place in a tree: the nodes above, and in each the place of what comes next.
struct Cursor<'a, K, V> {
    stack: Vec<(&'a Node<K, V>, usize)>,
    height: usize,
}

impl<'a, K, V> Cursor<'a, K, V> {
    fn new(map: &'a SharedMap<K, V>) -> Self {
        Self { stack: vec![(&*map.root, 0)], height: map.height }
    }

    /// What stands here; `None` at the end.
    fn item(&mut self) -> Option<Item<'a, K, V>> {
        while let Some(&(node, at)) = self.stack.last() {
            match node {
                Node::Leaf(entries) if at < entries.len() => {
                    return Some(Item::Entry(&entries[at]));
                }
                Node::Inner(children) if at < children.len() => {
                    let height = self.height - self.stack.len();
                    return Some(Item::Child(&children[at].1, height));
                }
                _ => {
                    self.stack.pop();
                    self.skip();
                }
            }
        }
        None
    }

    /// Past what stands here.
    fn skip(&mut self) {
        if let Some((_, at)) = self.stack.last_mut() {
            *at += 1;
        }
    }

    /// Into the subtree that stands here.
    fn open(&mut self) {
        if let Some(Item::Child(child, _)) = self.item() {
            self.stack.push((&**child, 0));
        }
    }

    /// Down to the next entry.
    fn settle(&mut self) {
        while let Some(Item::Child(..)) = self.item() {
            self.open();
        }
    }
}

/// Entries of a [`SharedMap`] by rising key.
pub struct Iter<'a, K, V> {
    cursor: Cursor<'a, K, V>,
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        self.cursor.settle();
        match self.cursor.item()? {
            Item::Entry((key, value)) => {
                self.cursor.skip();
                Some((key, value))
            }
            Item::Child(..) => unreachable!("settled"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn entries(map: &SharedMap<u16, u32>) -> Vec<(u16, u32)> {
        map.iter().map(|(k, v)| (*k, *v)).collect()
    }

    fn assert_sound(map: &SharedMap<u16, u32>) {
        fn depth(node: &Node<u16, u32>) -> usize {
            match node {
                Node::Leaf(entries) => {
                    assert!(entries.len() <= MAX);
                    0
                }
                Node::Inner(children) => {
                    assert!((1..=MAX).contains(&children.len()));
                    let depths: Vec<_> = children.iter().map(|(_, c)| depth(c)).collect();
                    assert!(depths.windows(2).all(|pair| pair[0] == pair[1]));
                    assert!(children.iter().all(|(_, child)| child.len() > 0));
                    depths[0] + 1
                }
            }
        }
        assert_eq!(depth(&map.root), map.height);
    }

    proptest! {
        #[test]
        fn it_is_the_map_of_the_standard_library_and_copies_stay_as_they_were(
            steps in prop::collection::vec((any::<bool>(), 0_u16..600, any::<u32>()), 0..1500),
            freeze_at in 0_usize..1500,
        ) {
            let (mut map, mut naive) = (SharedMap::default(), BTreeMap::new());
            let mut frozen = None;
            for (at, &(add, key, value)) in steps.iter().enumerate() {
                if at == freeze_at {
                    frozen = Some((map.clone(), entries(&map)));
                }
                // Whole stretches go, so that nodes get empty.
                let keys = if add { key..key + 1 } else { key..key + 40 };
                for key in keys {
                    if add {
                        prop_assert_eq!(map.insert(key, value), naive.insert(key, value));
                    } else {
                        prop_assert_eq!(map.remove(&key), naive.remove(&key));
                    }
                }
                prop_assert_eq!(map.get(&key), naive.get(&key));
            }
            assert_sound(&map);
            prop_assert_eq!(map.len(), naive.len());
            prop_assert_eq!(entries(&map), naive.clone().into_iter().collect::<Vec<_>>());
            for from in [0, 300, 599] {
                let tail: Vec<_> = map.range_from(&from).map(|(k, _)| *k).collect();
                prop_assert_eq!(tail, naive.range(from..).map(|(k, _)| *k).collect::<Vec<_>>());
            }
            if let Some((copy, as_it_was)) = frozen {
                prop_assert_eq!(entries(&copy), as_it_was);
            }
        }

        #[test]
        fn differences_are_those_of_the_entries(
            base in prop::collection::btree_map(0_u16..3000, 0_u32..3, 0..800),
            edits in prop::collection::vec((0_u16..3000, prop::option::of(0_u32..3)), 0..40),
            rebuilt: bool,
        ) {
            let old: SharedMap<_, _> = base.iter().map(|(k, v)| (*k, *v)).collect();
            let mut new = old.clone();
            for (key, value) in edits {
                match value {
                    Some(value) => new.insert(key, value),
                    None => new.remove(&key),
                };
            }
            if rebuilt {
                // Nothing shared: the slow way must say the same.
                new = new.iter().map(|(k, v)| (*k, *v)).collect();
            }
            let mut said = Vec::new();
            old.differences(&new, |a, b| a == b, |a, b| said.push((a.copied(), b.copied())));
            let (a, b): (BTreeMap<_, _>, BTreeMap<_, _>) =
                (entries(&old).into_iter().collect(), entries(&new).into_iter().collect());
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            let expected: Vec<_> = keys
                .into_iter()
                .map(|key| (a.get(key).copied(), b.get(key).copied()))
                .filter(|(x, y)| x != y)
                .collect();
            prop_assert_eq!(said, expected);
        }
    }

    #[test]
    fn comparing_copies_looks_only_where_they_differ() {
        let old: SharedMap<u32, u32> = (0..100_000).map(|n| (n, n)).collect();
        let mut new = old.clone();
        new.insert(50_000, 1);
        new.remove(&70_000);
        let looked = std::cell::Cell::new(0);
        let mut found = 0;
        let same = |a: &u32, b: &u32| {
            looked.set(looked.get() + 1);
            a == b
        };
        old.differences(&new, same, |_, _| found += 1);
        assert_eq!(found, 2);
        assert!(looked.get() <= 4 * MAX, "{} entries were compared", looked.get());
    }
}
