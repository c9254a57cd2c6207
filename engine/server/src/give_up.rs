//! Parts of operations that are waited for no longer.

use crate::event_loop::Loop;
use crate::op::{Fail, Kind, Op, Scope};
use crate::remote::{Object, Sent, State};
use crate::slab::Token;

impl Loop {
    /// Parts of the volume's operations that wait for a remote that is not connected come
    /// back, so that their operations run again: on the next tree, or, should the swap fail, on this.
    pub fn take_back(&mut self, volume: Token) {
        // Peers' requests on a T1 object belong to no volume here.
        let of = |op: &Op| op.volume == volume && !matches!(op.scope, Scope::T1(_));
        self.take_back_if(Fail::NotFound, of);
    }

    /// Gives up what waits for this object, whether or not its remote is connected: it may have
    /// stopped. What it still does of it is refused by then.
    pub fn give_up(&mut self, object: &Object) {
        for token in self.remotes.tokens() {
            let Some(remote) = self.remotes.get_mut(token) else { continue };
            for id in remote.sent.ids(|sent| sent.object == *object) {
                self.end_sent(token, id, Fail::NotFound);
            }
        }
    }

    /// Ends, in that way, the parts of such operations that wait for a remote that is away.
    pub fn take_back_if(&mut self, how: Fail, which: impl Fn(&Op) -> bool) {
        for token in self.remotes.tokens() {
            let Some(remote) = self.remotes.get_mut(token) else { continue };
            if matches!(remote.state, State::Ready) {
                continue;
            }
            let ops = &self.ops;
            let of = |sent: &Sent| ops.get(sent.to.op).is_some_and(&which);
            for id in remote.sent.ids(of) {
                self.end_sent(token, id, how);
            }
        }
    }

    /// Ends a part that has not been answered: it may have been carried out all the same.
    fn end_sent(&mut self, token: Token, id: u64, how: Fail) {
        let sent = self.remotes.get(token).and_then(|remote| remote.sent.get(id));
        // What may not be begun anew is if it has not been on its way.
        let unsent = |sent: &Sent| !sent.tried && matches!(sent.to.kind, Kind::Change(_));
        let sent = sent.filter(|sent| !unsent(sent));
        if let Some(op) = sent.and_then(|sent| self.ops.get_mut(sent.to.op)) {
            op.unsure();
        }
        self.remote_answered(token, id, Some(how));
    }
}
