//! Work that an order may end.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

pin_project! {
    /// Runs work until it ends or an order ends it. A type of its own, because what is moved into an `async fn` and pinned
    /// there has its room twice, and so twice again in whatever awaits that: requests would be kept in ten times what
    /// they need.
    pub(super) struct Unless<F, O, W> {
        #[pin]
        work: F,
        ordered: O,
        whole: W,
    }
}

impl<F, O, W> Unless<F, O, W> {
    /// `ordered` is asked before each turn of `work`, and sees to it that the task is woken for an order; `whole` makes the
    /// result of what `work` has come to.
    pub(super) fn new<T>(work: F, ordered: O, whole: W) -> Self
    where
        F: Future,
        O: FnMut(&mut Context<'_>) -> Option<T>,
        W: Fn(F::Output) -> T,
    {
        Self { work, ordered, whole }
    }
}

impl<F, O, W, T> Future for Unless<F, O, W>
where
    F: Future,
    O: FnMut(&mut Context<'_>) -> Option<T>,
    W: Fn(F::Output) -> T,
{
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = self.project();
        if let Some(ended) = (this.ordered)(cx) {
            return Poll::Ready(ended);
        }
        this.work.poll(cx).map(this.whole)
    }
}
