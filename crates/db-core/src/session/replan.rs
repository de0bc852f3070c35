//! Repeating a statement whose plan or types were stale.

use sqlx::Connection;
use sqlx::postgres::PgArguments;
use tokio::time::timeout;

use super::Session;
use super::stale;
use super::text::Text;
use crate::class::{Verdict, is_stale_plan, is_stale_type};
use crate::error_type::ErrorType;
use crate::statement::{InFlight, Transaction};
use crate::stats::CloseReason;

impl Session {
    /// Appends a marker comment after a stale plan. A pooler caches prepared statements by SQL text for all its clients and never
    /// forgets one, so only a different text gets a fresh plan.
    pub(super) fn mark_text(&self, text: &mut Text) {
        let stale = self.live().plans;
        if stale > 0 && self.inner.is_pooled() {
            text.mark(&format!("/* {:x}.{stale} */", self.inner.mark));
        }
    }

    /// Prepares a statement for sending. Returns a copy of its arguments if it may be sent again after a stale plan. That is safe
    /// because the server reports a stale plan before it runs anything, and outside a transaction no earlier work is lost.
    pub(super) fn spare_arguments(&self, text: &mut Text) -> Option<PgArguments> {
        self.mark_text(text);
        let is_alone = self.state.transaction == Transaction::None && !self.state.session_changed;
        if is_alone { text.copy_arguments() } else { None }
    }

    /// Whether to send the failed statement again. All connections of the pool forget their plans, since the change that made this
    /// plan stale affects others, too.
    pub(super) async fn refresh_plan(&mut self, error: &sqlx::Error, text: &Text) -> bool {
        if is_stale_type(error) {
            self.report_stale_types(error);
            return false;
        }
        if !is_stale_plan(error) || !stale::is_from_driver(error, text) {
            return false;
        }
        let plans = self.inner.plans_are_stale();
        if self.state.transaction != Transaction::None {
            // Nothing of the transaction is stored, and its next run gets a new plan: it lost against the change of the table.
            self.state.failure = Some((Verdict::conflict(), ErrorType::of(error)));
            return false;
        }
        let limit = self.limit();
        self.state.begin(InFlight::Control);
        let live = self.live.as_deref_mut().expect("an open connection");
        match timeout(limit.wait, live.raw.clear_cached_statements()).await {
            Ok(forgotten) => {
                self.state.end(forgotten.as_ref().err());
                live.plans = plans;
                forgotten.is_ok()
            }
            Err(_) => false,
        }
    }

    /// Reports that the driver cached a type's number that now belongs to another type or to none. Only a new connection replaces it, and
    /// other connections of the same age have it as well.
    fn report_stale_types(&mut self, error: &sqlx::Error) {
        self.state.mark_useless(CloseReason::Evicted);
        if self.state.transaction != Transaction::None {
            // As after a stale plan, the next run gets the new type.
            self.state.failure = Some((Verdict::conflict(), ErrorType::of(error)));
        }
        if self.live().uses > 0 {
            self.inner.types_are_stale(self.live().types);
        }
    }
}
