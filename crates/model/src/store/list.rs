//! Short shared lists in an order that answers the question: the values of the store's indexes.
//!
//! A list is replaced, never edited, so that a map node that holds many of them is copied by counting references.

use std::sync::Arc;

use imbl::HashMap;

/// An immutable list.
pub(super) type List<T> = Arc<[Arc<T>]>;

/// Puts `item` into the list under `key`, in the order of `rank`; the item of equal rank is replaced.
pub(super) fn insert<K, T, R>(map: &mut HashMap<K, List<T>>, key: K, item: &Arc<T>, rank: impl Fn(&T) -> R)
where
    K: std::hash::Hash + Eq + Clone,
    R: Ord,
{
    let list = map.entry(key).or_default();
    let at = list.partition_point(|other| rank(other) < rank(item));
    let after = match list.get(at) {
        Some(other) if rank(other) == rank(item) => at + 1,
        Some(_) | None => at,
    };
    *list = list[..at].iter().chain([item]).chain(&list[after..]).cloned().collect();
}

/// Takes an item out of the list under `key`, and the list out of the map when it was the last.
pub(super) fn remove<K, T, Q>(map: &mut HashMap<K, List<T>>, key: &Q, item: &Arc<T>)
where
    K: std::hash::Hash + Eq + Clone + std::borrow::Borrow<Q>,
    Q: std::hash::Hash + Eq + ?Sized,
{
    let Some(list) = map.get_mut(key) else { return };
    *list = list.iter().filter(|other| !Arc::ptr_eq(other, item)).cloned().collect();
    if list.is_empty() {
        map.remove(key);
    }
}
