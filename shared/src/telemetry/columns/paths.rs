//! The columns of a tree, by the order in which a walk meets them: the same for who packs and who unpacks.

use std::collections::BTreeMap;

pub(super) struct Paths(Vec<Path>);

#[derive(Default)]
struct Path {
    fields: BTreeMap<String, usize>,
    items: Vec<usize>,
    is_item: bool,
}

impl Paths {
    /// The root has column 0.
    pub(super) fn root() -> Self {
        Self(vec![Path::default()])
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn field(&mut self, at: usize, key: &str) -> usize {
        if let Some(column) = self.0[at].fields.get(key) {
            return *column;
        }
        let column = self.add(false);
        self.0[at].fields.insert(key.to_owned(), column);
        column
    }

    /// Of the element at `position`. Positions of a tuple are met one after the other.
    pub(super) fn item(&mut self, at: usize, position: usize) -> usize {
        let position = if self.0[at].is_item { position } else { 0 };
        if let Some(column) = self.0[at].items.get(position) {
            return *column;
        }
        let column = self.add(true);
        self.0[at].items.push(column);
        column
    }

    fn add(&mut self, is_item: bool) -> usize {
        self.0.push(Path { is_item, ..Path::default() });
        self.0.len() - 1
    }
}
