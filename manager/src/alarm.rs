//! Orders to a worker, with an alarm: a worker that sleeps wakes for an order at once, and need not
//! look for one now and then.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use crossbeam_channel::{Receiver, SendError, Sender, TryRecvError};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// The control thread's end.
#[derive(Debug)]
pub struct OrderSender<T> {
    orders: Sender<T>,
    alarm: Arc<EventFd>,
}

/// The worker's end.
#[derive(Debug)]
pub struct OrderReceiver<T> {
    orders: Receiver<T>,
    alarm: Arc<EventFd>,
}

/// Makes both ends.
///
/// # Errors
/// As eventfd(2).
pub fn order_channel<T>() -> io::Result<(OrderSender<T>, OrderReceiver<T>)> {
    let (sender, receiver) = crossbeam_channel::unbounded();
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let alarm = Arc::new(EventFd::from_flags(flags)?);
    let ours = OrderSender { orders: sender, alarm: Arc::clone(&alarm) };
    Ok((ours, OrderReceiver { orders: receiver, alarm }))
}

impl<T> OrderSender<T> {
    /// Gives an order and wakes the worker.
    ///
    /// # Errors
    /// The order, when the worker is gone.
    pub fn send(&self, order: T) -> Result<(), SendError<T>> {
        self.orders.send(order)?;
        // It fails only when the count is full, and then the alarm is on already.
        let _ = self.alarm.write(1);
        Ok(())
    }
}

impl<T> OrderReceiver<T> {
    /// The next order, if there is one.
    ///
    /// # Errors
    /// There is none, or the sender is gone.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.orders.try_recv()
    }

    /// Readable since an order was given, until [`quiet`](Self::quiet).
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.alarm.as_fd()
    }

    /// Turns the alarm off. What is ordered from now on turns it on again.
    pub fn quiet(&self) {
        // It fails when the alarm is off.
        let _ = self.alarm.read();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn is_on(orders: &OrderReceiver<u8>) -> bool {
        poll(&mut [PollFd::new(orders.fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
    }

    #[test]
    fn an_order_turns_the_alarm_on_until_it_is_turned_off() {
        let (sender, orders) = order_channel().unwrap();
        assert!(!is_on(&orders));
        orders.quiet();
        sender.send(7).unwrap();
        sender.send(8).unwrap();
        assert!(is_on(&orders));
        orders.quiet();
        assert!(!is_on(&orders));
        assert_eq!((orders.try_recv(), orders.try_recv()), (Ok(7), Ok(8)));
        drop(orders);
        assert!(sender.send(9).is_err());
    }
}
