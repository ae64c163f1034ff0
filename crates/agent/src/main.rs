//! Enters the library. As the program of an initramfs (`--cfg pid1`) there is no standard library:
//! the C library starts the process and allocates.
// UNSAFETY: the C library and the compiled `core` look for functions by these names; the C library tells the command line by
// pointers.
#![cfg_attr(pid1, no_std, no_main)]
#![cfg_attr(not(pid1), forbid(unsafe_code))]

#[cfg(pid1)]
mod entry {
    #[global_allocator]
    static ALLOCATOR: agent::sys::Malloc = agent::sys::Malloc;

    #[panic_handler]
    fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
        agent::init::panicked(info)
    }

    /// The compiled `core` and `alloc` name this in their unwinding tables. Panics abort: nobody unwinds.
    // SAFETY: it is never called, and without the standard library nothing else has this name.
    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() {}

    // SAFETY: nothing else in this program is called `main`, and this is the type C gives it.
    #[unsafe(no_mangle)]
    extern "C" fn main(count: core::ffi::c_int, words: *const *const core::ffi::c_char) -> i32 {
        // SAFETY: these are what the C library gives `main`, and nothing changes them.
        agent::init::main(&unsafe { agent::sys::words(count, words) })
    }
}

#[cfg(not(pid1))]
fn main() -> std::process::ExitCode {
    use std::os::unix::ffi::OsStringExt;
    let words: Vec<Vec<u8>> = std::env::args_os().map(OsStringExt::into_vec).collect();
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    std::process::ExitCode::from(u8::try_from(agent::init::main(&words)).unwrap_or(u8::MAX))
}
