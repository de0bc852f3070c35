//! The routes of a program, as names of work.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use db_layer::Db;

/// The most routes that have a name: more than a program has.
const MOST: usize = 1000;

/// The routes that were asked for. A name lives as long as the program, as a text in its source does, where the route is written.
#[derive(Debug, Default)]
pub(crate) struct Names(RwLock<HashSet<&'static str>>);

/// The names of a database's routes.
pub(crate) fn of(db: &Db) -> Arc<Names> {
    db.api().pool().attached_or_default()
}

impl Names {
    /// The name of a route.
    pub(crate) fn get(&self, route: &str) -> Option<&'static str> {
        if let Some(name) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(route) {
            return Some(name);
        }
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match names.get(route) {
            Some(name) => Some(name),
            None if names.len() >= MOST => None,
            None => {
                let name: &'static str = Box::leak(route.into());
                names.insert(name);
                Some(name)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_keeps_its_name_and_there_is_an_end_of_them() {
        let names = Names::default();
        let first = names.get("/0").expect("a name");
        assert!((1..MOST).all(|n| names.get(&format!("/{n}")).is_some()));

        assert_eq!(names.get("/more"), None);
        assert!(std::ptr::eq(names.get("/0").expect("a name"), first), "made once");
    }
}
