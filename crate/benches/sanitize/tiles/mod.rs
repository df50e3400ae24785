//! The matrix unit AMX, emulated where the processor has none, so that the kernels that use it run anyway: the system's
//! signal for an illegal instruction comes here, the instruction is carried out, and the thread goes on behind it.
//!
//! Loads and stores of tiles are then those of this program, and whatever watches it sees them. Where the processor has
//! the unit no signal comes, and the tests here hold the emulated products to the real ones.

mod decode;
mod product;
#[cfg(test)]
mod tests;
mod unit;

use crate::kernel::amx::{EMULATED, has_int8};
use crate::kernel::simd::{Level, level};
use decode::{Instruction, decode};
use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::mem::zeroed;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use unit::Unit;

/// Tiles, of bf16 and of bytes.
const FEATURES: u32 = 1 << 24 | 1 << 22 | 1 << 25;

/// Instructions carried out: all of them, and the products among them.
static DONE: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

thread_local! {
    /// The handler of a signal may use it: it is plain data without a drop, there from the beginning of the thread.
    static UNIT: UnsafeCell<Unit> = const { UnsafeCell::new(Unit::NEW) };
}

/// Before `main`, and so before any test asks for the unit.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

/// When all tests are done.
#[used]
#[unsafe(link_section = ".fini_array")]
static END: extern "C" fn() = end;

extern "C" fn begin() {
    // Asked before anything is emulated, this is the processor's own unit.
    if has_int8() {
        return;
    }
    let vectors = is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512vnni");
    if level() < Level::Avx512 || !vectors {
        fail("neither AMX nor the vectors of AVX-512 that its kernels need");
    }
    // SAFETY: the handler's own promise; an action of zeros has no flags and blocks no signals.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = trapped as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGILL, &raw const action, ptr::null_mut());
    }
    EMULATED.set(FEATURES).expect("nobody else emulates");
}

extern "C" fn end() {
    let [all, products] = DONE.each_ref().map(|count| count.load(Ordering::Relaxed));
    if EMULATED.get().is_none() && has_int8() {
        eprintln!("tiles: the processor's own unit was used, nothing was emulated");
    } else if all > 0 {
        eprintln!("tiles: {all} instructions were emulated, {products} of them products");
    } else {
        fail("the processor has no unit, and nothing was emulated");
    }
}

/// Ends the process before the first test or behind the last.
fn fail(why: &str) -> ! {
    eprintln!("tiles: {why}");
    // SAFETY: nothing is left to be done.
    unsafe { libc::_exit(1) }
}

/// Carries out the instruction that the processor does not know. It allocates nothing and waits for nothing, as it has to.
extern "C" fn trapped(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system gives the state of the thread at the instruction, for this handler alone.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = ptr::with_exposed_provenance(registers[libc::REG_RIP as usize] as usize);
    // SAFETY: the processor has read an instruction there.
    let Some((instruction, next)) = (unsafe { decode(at, registers) }) else {
        // SAFETY: back at the instruction, the process ends as it would have without this handler.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
        return;
    };
    // SAFETY: the thread's own unit, of which nothing is borrowed while its instructions run; memory is what the kernel
    // under test says.
    let done = UNIT.with(|unit| unsafe { (*unit.get()).carry_out(instruction) });
    if let Err(why) = done {
        refuse(why);
    }
    DONE[0].fetch_add(1, Ordering::Relaxed);
    if let Instruction::Add(..) = instruction {
        DONE[1].fetch_add(1, Ordering::Relaxed);
    }
    registers[libc::REG_RIP as usize] = next as i64;
}

/// Ends the process, with a line that says why.
fn refuse(why: &str) -> ! {
    let parts = ["tiles: ", why, "\n"]
        .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
    // SAFETY: three strings that are read.
    unsafe {
        libc::writev(libc::STDERR_FILENO, parts.as_ptr(), parts.len() as c_int);
        libc::abort()
    }
}
