//! The grids of tiles that an image can be split into.

/// Columns and rows of all grids of so many tiles, by tiles. Those of equally many come in the
/// order in which Python walks over a set of tuples, since the reference sorts such a set.
pub fn candidate_grids(min_tiles: usize, max_tiles: usize) -> Vec<(usize, usize)> {
    let mut set = PythonSet::default();
    for side in min_tiles..=max_tiles {
        for cols in 1..=side {
            let fewest = min_tiles.div_ceil(cols);
            let most = side.min(max_tiles / cols);
            (fewest..=most).for_each(|rows| set.insert((cols, rows)));
        }
    }
    let mut grids: Vec<_> = set.slots.into_iter().flatten().collect();
    grids.sort_by_key(|(cols, rows)| cols * rows);
    grids
}

/// The hash table behind a set of CPython (`Objects/setobject.c`, 3.8 to 3.14, 64 bits), for pairs
/// of numbers.
struct PythonSet {
    slots: Vec<Option<(usize, usize)>>,
    used: usize,
}

impl Default for PythonSet {
    fn default() -> Self {
        PythonSet { slots: vec![None; 8], used: 0 }
    }
}

impl PythonSet {
    fn insert(&mut self, pair: (usize, usize)) {
        let slot = self.slot(pair);
        if self.slots[slot].replace(pair).is_some() {
            return;
        }
        self.used += 1;
        let mask = self.slots.len() - 1;
        if self.used * 5 >= mask * 3 {
            let larger = vec![None; (self.used * 4 + 1).next_power_of_two()];
            for pair in std::mem::replace(&mut self.slots, larger).into_iter().flatten() {
                let slot = self.slot(pair);
                self.slots[slot] = Some(pair);
            }
        }
    }

    /// Where the pair is, or else where it goes.
    fn slot(&self, pair: (usize, usize)) -> usize {
        const LINEAR_PROBES: usize = 9;
        const PERTURB_SHIFT: u32 = 5;
        let hash = python_hash(pair);
        let mask = self.slots.len() as u64 - 1;
        let (mut start, mut perturb) = (hash & mask, hash);
        loop {
            let first = start as usize;
            let probes = if first + LINEAR_PROBES < self.slots.len() { LINEAR_PROBES } else { 0 };
            let free = |&slot: &usize| self.slots[slot].is_none_or(|other| other == pair);
            if let Some(slot) = (first..=first + probes).find(free) {
                return slot;
            }
            perturb >>= PERTURB_SHIFT;
            start = (start.wrapping_mul(5).wrapping_add(1).wrapping_add(perturb)) & mask;
        }
    }
}

/// The hash of a tuple of two small numbers (`Objects/tupleobject.c`, after xxHash).
fn python_hash((first, second): (usize, usize)) -> u64 {
    const PRIME_1: u64 = 11_400_714_785_074_694_791;
    const PRIME_2: u64 = 14_029_467_366_897_019_727;
    const PRIME_5: u64 = 2_870_177_450_012_600_261;
    let add = |sum: u64, number: usize| {
        sum.wrapping_add((number as u64).wrapping_mul(PRIME_2))
            .rotate_left(31)
            .wrapping_mul(PRIME_1)
    };
    add(add(PRIME_5, first), second).wrapping_add(2 ^ PRIME_5 ^ 3_527_539)
}
