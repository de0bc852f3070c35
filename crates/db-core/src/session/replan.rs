//! Sending a statement again whose plan, or whose types, had become stale.

use sqlx::Connection;
use sqlx::postgres::PgArguments;
use tokio::time::timeout;

use super::Session;
use crate::class::{Verdict, is_stale_plan, is_stale_type};
use crate::stale;
use crate::statement::{Flight, Transaction};
use crate::text::Text;

impl Session {
    /// Has a statement sent under a text of its own where it must be. A pooler keeps what was prepared under one text, for all its
    /// clients, and closing a statement does not make it forget: once plans were found stale, another text is what makes a new one.
    pub(super) fn distinguish(&self, text: &mut Text) {
        let stale = self.live().plans;
        if stale > 0 && self.inner.is_pooled() {
            text.mark(&format!("/* {:x}.{stale} */", self.inner.mark));
        }
    }

    /// Prepares a statement to be sent, and says what it needs to be sent again when its plan turns out stale, if it may. That is
    /// safe where the server finds it out before it runs anything, and outside of a transaction nothing else is lost with it.
    pub(super) fn spare(&self, text: &mut Text) -> Option<PgArguments> {
        self.distinguish(text);
        let is_alone = self.state.transaction == Transaction::None && !self.state.session_changed;
        if is_alone { text.spare() } else { None }
    }

    /// Whether the statement that has just failed is to be sent again. All connections of the pool forget their plans: what
    /// made this one stale has made others, too.
    pub(super) async fn heals(&mut self, error: &sqlx::Error, text: &Text) -> bool {
        if is_stale_type(error) {
            self.has_stale_types();
            return false;
        }
        if !is_stale_plan(error) || !stale::is_of_the_driver(error, text) {
            return false;
        }
        let plans = self.inner.plans_are_stale();
        if self.state.transaction != Transaction::None {
            // Nothing of it is stored, and the next run finds new plans: it lost against whoever changed the table.
            self.state.failure = Some(Verdict::conflict());
            return false;
        }
        let limit = self.limit();
        self.state.begin(Flight::Control);
        let live = self.live.as_deref_mut().expect("there until it is dropped");
        match timeout(limit.wait, live.raw.clear_cached_statements()).await {
            Ok(forgotten) => {
                self.state.end(forgotten.as_ref().err());
                live.plans = plans;
                forgotten.is_ok()
            }
            Err(_) => false,
        }
    }

    /// Notes that the driver knows a type by a number that is another's now, or nobody's, which nothing but a new connection
    /// makes it forget. Others that are as old know it as well.
    fn has_stale_types(&mut self) {
        self.state.mark_useless();
        if self.state.transaction != Transaction::None {
            // As with a stale plan, the next run finds the new type.
            self.state.failure = Some(Verdict::conflict());
        }
        if self.live().uses > 0 {
            self.inner.types_are_stale(self.live().types);
        }
    }
}
