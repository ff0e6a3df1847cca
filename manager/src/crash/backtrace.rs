//! From addresses in a process that is no more to names of functions.
//!
//! What the process had mapped is its own word, and the files are whatever lies at these paths now. So they
//! are only read where the NF's own user may read them, when they are ordinary files of a bounded length that
//! have not changed since the NF attached, and without mapping them: a file that is cut short while it is
//! mapped ends the process that reads it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use addr2line::gimli::{self, EndianSlice, RunTimeEndian};
use object::{Object as _, ObjectSection as _, ObjectSegment as _, ObjectSymbol as _, ReadCache};

/// Longest file that is looked into, bytes.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Longest debug information that is read, bytes.
const MAX_DEBUG_BYTES: u64 = 256 << 20;
/// Most functions that one address is inside of, by inlining.
const MAX_INLINED: usize = 32;
/// Longest name of a function, bytes.
const MAX_NAME_BYTES: usize = 512;
/// Beginnings of names of functions that are on their way to a panic, or below every NF.
const MACHINERY: [&str; 11] = [
    "std::",
    "core::",
    "alloc::",
    "<std::",
    "<core::",
    "<alloc::",
    "__rust",
    "rust_",
    "_Unwind_",
    "nflib::shm::last_words",
    "<nflib::shm::last_words",
];

/// Code of a file in a process's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    start: u64,
    end: u64,
    /// Where in the file `start` is.
    offset: u64,
    /// The file.
    pub path: String,
}

/// Who had the file mapped, and since when.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    /// The user.
    pub uid: u32,
    /// A file that has changed since is another one: seconds since 1970.
    pub since_unix_s: i64,
}

/// A function that a call was inside of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// `file:line`.
    pub at: Option<String>,
}

/// A call that was under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// An address inside of it.
    pub address: u64,
    /// The file, and the address in it: what `addr2line -e` takes.
    pub module: Option<(String, u64)>,
    /// The functions it was inside of, innermost first; all but the last are inlined.
    pub functions: Vec<Function>,
}

/// Reads lines of /proc/PID/maps; what is none is left out.
#[must_use]
pub fn modules(maps: &str) -> Vec<Module> {
    let read = |line: &str| {
        let mut fields = line.splitn(6, ' ').map(str::trim);
        let (start, end) = fields.next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (number(start)?, number(end)?);
        let offset = number(fields.nth(1)?)?;
        let path = fields.nth(2)?.trim().to_owned();
        (start < end && path.starts_with('/')).then_some(Module { start, end, offset, path })
    };
    maps.lines().filter_map(read).collect()
}

/// Says of each address what can be known.
#[must_use]
pub fn explain(addresses: &[u64], modules: &[Module], reader: Reader) -> Vec<Frame> {
    let mut frames: Vec<_> =
        addresses.iter().map(|&address| Frame { address, ..Frame::default() }).collect();
    // Each file is read once, and only one is in memory at a time.
    let mut by_path: BTreeMap<&str, Vec<(usize, u64)>> = BTreeMap::new();
    for (at, frame) in frames.iter_mut().enumerate() {
        let here = |m: &&Module| (m.start..m.end).contains(&frame.address);
        if let Some(module) = modules.iter().find(here) {
            let in_file = (frame.address - module.start).saturating_add(module.offset);
            frame.module = Some((module.path.clone(), in_file));
            by_path.entry(&module.path).or_default().push((at, in_file));
        }
    }
    for (path, places) in by_path {
        // The parsers have been tried with much nonsense; should one panic, it costs names.
        let look = || look_up(Path::new(path), &places, reader);
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(look)).ok().flatten();
        for (at, address, functions) in found.into_iter().flatten() {
            frames[at].module = Some((path.to_owned(), address));
            frames[at].functions = functions;
        }
    }
    frames
}

fn open(path: &Path, reader: Reader) -> Option<File> {
    // Neither waits for the other end of a pipe nor takes a terminal.
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let meta = file.metadata().ok()?;
    let may_read =
        meta.mode() & 0o004 != 0 || (meta.uid() == reader.uid && meta.mode() & 0o400 != 0);
    let fits = meta.is_file() && meta.len() <= MAX_FILE_BYTES && may_read;
    (fits && meta.ctime() <= reader.since_unix_s).then_some(file)
}

type Functions = Vec<(usize, u64, Vec<Function>)>;

/// The addresses, as the file has them, of places in it, and the functions there.
fn look_up(path: &Path, places: &[(usize, u64)], reader: Reader) -> Option<Functions> {
    let cache = ReadCache::new(open(path, reader)?);
    let object = object::File::parse(&cache).ok()?;
    let address_of = |in_file: u64| {
        object.segments().find_map(|segment| {
            let (offset, len) = segment.file_range();
            let inside = in_file.checked_sub(offset).filter(|at| *at < len)?;
            segment.address().checked_add(inside)
        })
    };
    let mut found: Functions = places
        .iter()
        .filter_map(|&(at, in_file)| Some((at, address_of(in_file)?, Vec::new())))
        .collect();
    by_symbols(&object, &mut found);
    // Lines are a luxury: without them the names of symbols stay.
    let _ = by_debug_information(&object, &mut found);
    Some(found)
}

fn by_symbols<'a>(object: &object::File<'a, &'a ReadCache<File>>, found: &mut Functions) {
    for symbol in object.symbols().chain(object.dynamic_symbols()) {
        let (start, size) = (symbol.address(), symbol.size());
        for (_, address, functions) in found.iter_mut() {
            let inside = address.checked_sub(start).is_some_and(|at| at < size);
            if inside
                && functions.is_empty()
                && let Ok(name) = symbol.name()
            {
                functions.push(Function { name: demangled(name), at: None });
            }
        }
    }
}

fn by_debug_information<'a>(
    object: &object::File<'a, &'a ReadCache<File>>,
    found: &mut Functions,
) -> Result<(), gimli::Error> {
    let endian = if object.is_little_endian() { RunTimeEndian::Little } else { RunTimeEndian::Big };
    let mut left_bytes = MAX_DEBUG_BYTES;
    let dwarf = gimli::Dwarf::load(|id| {
        let section = object.section_by_name(id.name());
        let section = section.filter(|section| section.size() <= left_bytes);
        let data = section.and_then(|section| section.data().ok()).unwrap_or_default();
        left_bytes -= (data.len() as u64).min(left_bytes);
        Ok::<_, gimli::Error>(EndianSlice::new(data, endian))
    })?;
    let context = addr2line::Context::from_dwarf(dwarf)?;
    for (_, address, functions) in found {
        let mut inner = Vec::new();
        let mut frames = context.find_frames(*address).skip_all_loads()?;
        while let Some(frame) = frames.next()? {
            // Tables of lines name only what is inlined, and what that is inlined into.
            let name = frame.function.as_ref().and_then(|name| name.raw_name().ok());
            let symbol = || functions.first().map(|symbol| symbol.name.clone());
            let Some(name) = name.map(|name| demangled(&name)).or_else(symbol) else { continue };
            let at = frame.location.and_then(|place| Some((place.file?.to_owned(), place.line)));
            let at = at.map(|(file, line)| match line {
                Some(line) => format!("{file}:{line}"),
                None => file,
            });
            inner.push(Function { name, at });
            if inner.len() == MAX_INLINED {
                break;
            }
        }
        if let Some(outermost) = inner.last_mut() {
            // Where there are tables of lines alone, functions have names without their modules; the
            // symbol of the function that they are inlined into has the whole.
            if let Some(symbol) = functions.first().filter(|s| s.name.ends_with(&outermost.name)) {
                outermost.name.clone_from(&symbol.name);
            }
            *functions = inner;
        }
    }
    Ok(())
}

fn demangled(name: &str) -> String {
    // A short name may stand for one without end.
    struct Bounded(String);
    impl std::fmt::Write for Bounded {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            if self.0.len() + text.len() > MAX_NAME_BYTES {
                return Err(std::fmt::Error);
            }
            self.0.push_str(text);
            Ok(())
        }
    }
    let mut bounded = Bounded(String::new());
    if write!(bounded, "{:#}", rustc_demangle::demangle(name)).is_err() {
        bounded.0.push('…');
    }
    bounded.0
}

/// A panic's calls without those of the panic itself, as far as they can be told by name.
#[must_use]
pub fn without_hook(mut frames: Vec<Frame>) -> Vec<Frame> {
    let begins =
        |frame: &Frame| frame.functions.iter().any(|f| f.name.ends_with("rust_begin_unwind"));
    if let Some(at) = frames.iter().position(begins) {
        frames.drain(..=at);
    }
    frames
}

/// The function that is most likely at fault: the innermost that is not on the way to a panic.
#[must_use]
pub fn culprit(frames: &[Frame]) -> Option<&Function> {
    let own = frames.iter().find(|frame| !is_library(frame));
    let program = own.and_then(|frame| frame.module.as_ref()).map(|(path, _)| path.as_str());
    let of_program = |frame: &&Frame| {
        program.is_some() && frame.module.as_ref().map(|(path, _)| path.as_str()) == program
    };
    let functions = frames.iter().filter(of_program).flat_map(|frame| &frame.functions);
    functions
        .clone()
        .find(|f| !MACHINERY.iter().any(|begin| f.name.starts_with(begin)) && !is_of_rust(f))
        .or_else(|| frames.iter().flat_map(|frame| &frame.functions).next())
}

/// Of Rust's own libraries, by where its source was when they were built.
fn is_of_rust(function: &Function) -> bool {
    function.at.as_ref().is_some_and(|at| at.starts_with("/rustc/"))
}

fn is_library(frame: &Frame) -> bool {
    frame.module.as_ref().is_none_or(|(path, _)| path.contains(".so"))
}

/// The calls as lines for people, innermost first.
#[must_use]
pub fn text(frames: &[Frame]) -> String {
    let mut out = String::new();
    for (number, Frame { address, module, functions }) in frames.iter().enumerate() {
        let place = match module {
            Some((path, at)) => format!("{path}+{at:#x}"),
            None => format!("{address:#x}"),
        };
        let _ = match functions.first() {
            None => writeln!(out, "{number:4}: {place}"),
            Some(_) => Ok(()),
        };
        for (inlined, Function { name, at }) in functions.iter().enumerate() {
            let _ = match inlined {
                0 => writeln!(out, "{number:4}: {name}"),
                _ => writeln!(out, "      {name}"),
            };
            if let Some(at) = at {
                let _ = writeln!(out, "          at {at}");
            }
        }
        if !functions.is_empty() {
            let _ = writeln!(out, "          {place}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[inline(never)]
    fn a_function_to_be_found() -> usize {
        std::hint::black_box(a_function_to_be_found as *const () as usize)
    }

    fn own_modules() -> Vec<Module> {
        modules(&std::fs::read_to_string("/proc/self/maps").unwrap())
    }

    const ANYBODY: Reader = Reader { uid: u32::MAX, since_unix_s: i64::MAX };

    fn own_user() -> Reader {
        Reader { uid: nix::unistd::geteuid().as_raw(), ..ANYBODY }
    }

    #[test]
    fn a_function_of_this_program_has_its_name_and_its_line() {
        let address = a_function_to_be_found() as u64;
        let frames = explain(&[address + 1, 16], &own_modules(), own_user());
        let function = culprit(&frames).unwrap();
        assert!(function.name.ends_with("a_function_to_be_found"), "{frames:?}");
        assert!(function.at.as_ref().unwrap().contains("backtrace.rs:"), "{function:?}");
        assert_eq!(frames[1], Frame { address: 16, ..Frame::default() });
        let text = text(&frames);
        assert!(
            text.contains("a_function_to_be_found\n") && text.contains("   1: 0x10\n"),
            "{text}"
        );
    }

    #[test]
    fn a_file_that_changed_since_or_is_not_the_nfs_to_read_gives_no_names() {
        let address = a_function_to_be_found() as u64;
        let since_1970 = Reader { since_unix_s: 0, ..own_user() };
        let [frame] = &explain(&[address], &own_modules(), since_1970)[..] else { panic!() };
        assert!(frame.functions.is_empty() && frame.module.is_some());
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        std::fs::copy(std::env::current_exe().unwrap(), &secret).unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(open(&secret, ANYBODY).is_none() && open(&secret, own_user()).is_some());
        assert!(open(folder.path(), own_user()).is_none(), "a folder");
        assert!(open(Path::new("/dev/zero"), own_user()).is_none(), "a device");
    }

    #[test]
    fn lines_that_are_no_mappings_are_left_out() {
        let text = "10-20 r-xp 00001000 fd:00 77     /bin/a b\nnonsense\n30-20 r-xp 0 0 0 /c\n\
                    40-50 r-xp 0 0 0 [vdso]\n60-70\n";
        let found = modules(text);
        assert_eq!(found, [Module { start: 16, end: 32, offset: 4096, path: "/bin/a b".into() }]);
    }

    #[test]
    fn what_leads_to_a_panic_is_not_at_fault() {
        let frame = |path: &str, name: &str| Frame {
            module: Some((path.into(), 1)),
            functions: vec![Function { name: name.into(), at: None }],
            ..Frame::default()
        };
        let frames = [
            frame("/lib/libc.so.6", "pthread_kill"),
            frame("/bin/nf", "std::panicking::panic"),
            frame("/bin/nf", "my_nf::process"),
            frame("/bin/nf", "nflib::engine::run"),
        ];
        assert_eq!(culprit(&frames).unwrap().name, "my_nf::process");
        assert_eq!(culprit(&frames[..1]).unwrap().name, "pthread_kill");
        assert_eq!(culprit(&[]), None);
    }

    proptest! {
        #[test]
        fn any_text_is_modules_or_none(text in "([0-9a-f]{1,20}-[0-9a-f]{1,20} r-xp [0-9a-f]{1,20} 0 0 /x\n|\\PC{0,40}\n){0,8}",
            address: u64)
        {
            let _ = explain(&[address], &modules(&text), ANYBODY);
        }

        #[test]
        fn any_file_gives_names_or_none(mut bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x");
            let magic = b"\x7fELF\x02\x01\x01";
            if bytes.len() > magic.len() {
                bytes[..magic.len()].copy_from_slice(magic);
            }
            std::fs::write(&path, bytes).unwrap();
            let module = Module { start: 0, end: u64::MAX, offset: 0, path: path.display().to_string() };
            let _ = explain(&[1, 77, u64::MAX - 1], &[module], own_user());
        }
    }
}
