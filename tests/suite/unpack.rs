//! Unpacking: archives as tools make them, and hostile ones that try to write outside the directory.

use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use pipeloop::artifact::unpack::{Bounds, unpack};
use pipeloop::error::{ArchiveFormat, Error, UploadError};
use pipeloop::text::excerpt;
use proptest::prelude::*;
use tar::EntryType;
use tempfile::TempDir;
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

const BOUNDS: Bounds = Bounds { bytes: 1 << 20, entries: 50, halt: None };
const SCRIPT: &[u8] = b"#!/bin/sh\n";

/// An entry of an archive. Names are not checked.
#[derive(Debug, Clone)]
enum Item {
    Directory(String, u32),
    File(String, u32, Vec<u8>),
    Link(String, String),
    HardLink(String, String),
    Special(String, EntryType),
}

fn directory(name: &str, mode: u32) -> Item {
    Item::Directory(name.into(), mode)
}

fn file(name: &str, mode: u32, content: &[u8]) -> Item {
    Item::File(name.into(), mode, content.into())
}

fn link(name: &str, target: &str) -> Item {
    Item::Link(name.into(), target.into())
}

fn hard_link(name: &str, target: &str) -> Item {
    Item::HardLink(name.into(), target.into())
}

fn exec() -> Item {
    file("exec", 0o755, SCRIPT)
}

fn zip(items: &[Item]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for item in items {
        let options = |mode: u32| SimpleFileOptions::default().external_attributes(mode << 16);
        match item {
            Item::Directory(name, mode) => writer.add_directory(name.clone(), options(0o040_000 | *mode)).unwrap(),
            Item::File(name, mode, content) => {
                writer.start_file(name.clone(), options(0o100_000 | *mode)).unwrap();
                writer.write_all(content).unwrap();
            }
            Item::Link(name, target) => {
                writer.start_file(name.clone(), options(0o120_777)).unwrap();
                writer.write_all(target.as_bytes()).unwrap();
            }
            Item::Special(name, kind) => {
                let mode = if *kind == EntryType::Fifo { 0o010_644 } else { 0o020_644 };
                writer.start_file(name.clone(), options(mode)).unwrap();
            }
            Item::HardLink(..) => panic!("zip has no hard links"),
        }
    }
    writer.finish().unwrap().into_inner()
}

fn tar(items: &[Item]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        let (name, kind, mode, target, content) = match item {
            Item::Directory(name, mode) => (name, EntryType::Directory, *mode, "", &[][..]),
            Item::File(name, mode, content) => (name, EntryType::Regular, *mode, "", &content[..]),
            Item::Link(name, target) => (name, EntryType::Symlink, 0o777, &target[..], &[][..]),
            Item::HardLink(name, target) => (name, EntryType::Link, 0o644, &target[..], &[][..]),
            Item::Special(name, kind) => (name, *kind, 0o644, "", &[][..]),
        };
        // Set directly, since the builder refuses the hostile names.
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// All files in a directory, sorted, with one line each.
fn listing(directory: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(at) = directories.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(directory).unwrap().display();
            let metadata = path.symlink_metadata().unwrap();
            let mode = metadata.permissions().mode() & 0o7777;
            if metadata.is_symlink() {
                lines.push(format!("{name} -> {}", fs::read_link(&path).unwrap().display()));
            } else if metadata.is_dir() {
                lines.push(format!("{name}/ {mode:o}"));
                directories.push(path);
            } else {
                lines.push(format!("{name} {mode:o} {:?}", String::from_utf8_lossy(&fs::read(&path).unwrap())));
            }
        }
    }
    lines.sort();
    lines
}

/// Unpacks into a directory three levels down, and checks that nothing changes outside it.
fn unpack_safely(format: ArchiveFormat, bytes: &[u8], bounds: &Bounds) -> (TempDir, PathBuf, Result<(), Error>) {
    let outside = tempfile::tempdir().unwrap();
    let into = outside.path().join("action/1/bin");
    fs::create_dir_all(&into).unwrap();
    fs::write(outside.path().join("secret"), "kept").unwrap();
    let around = |into: &Path| {
        let inside = format!("{}/", into.strip_prefix(outside.path()).unwrap().display());
        let mut lines = listing(outside.path());
        lines.retain(|line| !line.starts_with(&inside) || line.len() == inside.len());
        lines
    };
    let before = around(&into);
    let result = unpack(format, bytes, &into, bounds).and_then(|contents| contents.exec.map(drop));
    assert_eq!(around(&into), before, "something outside the directory has changed: {result:?}");
    (outside, into, result)
}

/// Unpacks an archive and compares the files, or the error.
#[track_caller]
fn check(format: ArchiveFormat, bytes: &[u8], expected: Result<&[&str], &str>) {
    let (_outside, into, result) = unpack_safely(format, bytes, &BOUNDS);
    match (result, expected) {
        (Ok(()), Ok(lines)) => assert_eq!(listing(&into), lines),
        (Err(error), Err(message)) => assert_eq!(error.to_string(), message),
        (result, expected) => panic!("expected {expected:?}, got {result:?} and {:?}", listing(&into)),
    }
}

/// Checks the same entries in both formats; `{format}` in the message is the name of the format.
#[track_caller]
fn check_both(items: &[Item], expected: Result<&[&str], &str>) {
    for (format, bytes) in [(ArchiveFormat::Zip, zip(items)), (ArchiveFormat::TarGz, gzip(&tar(items)))] {
        let message = expected.map_err(|message| message.replace("{format}", &format.to_string()));
        check(format, &bytes, message.as_deref().map_err(|message| &**message));
    }
}

#[track_caller]
fn check_tar(items: &[Item], expected: Result<&[&str], &str>) {
    check(ArchiveFormat::TarGz, &gzip(&tar(items)), expected);
}

/// Replaces every `from` by `to`, which has the same length.
fn patched(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let places: Vec<_> = memchr::memmem::find_iter(&bytes, from).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    bytes
}

#[test]
fn formats_are_recognised_by_their_first_bytes() {
    assert_eq!(ArchiveFormat::of(b"PK\x03\x04rest"), Some(ArchiveFormat::Zip));
    assert_eq!(ArchiveFormat::of(&zip(&[])), Some(ArchiveFormat::Zip));
    assert_eq!(ArchiveFormat::of(&gzip(b"")), Some(ArchiveFormat::TarGz));
    for other in [&b""[..], b"P", b"PK", b"PK\x01\x02", b"\x1f", b"#!/bin/sh", b"\x7fELF"] {
        assert_eq!(ArchiveFormat::of(other), None);
    }
}

#[test]
fn files_directories_modes_and_inner_links_are_kept() {
    let items = [
        exec(),
        directory("lib/", 0o700),
        file("lib/secret", 0o600, b"s"),
        file("lib/deep/er/data", 0o644, b"d"),
        directory("lib/deep/", 0o555),
        directory("empty/", 0o775),
        link("lib/link", "deep/er/../er/data"),
        link("up", "lib/../exec"),
        link("dangling", "not/there"),
    ];
    let expected = [
        "dangling -> not/there",
        "empty/ 775",
        r##"exec 755 "#!/bin/sh\n""##,
        "lib/ 700",
        // The owner can always write into a directory.
        "lib/deep/ 755",
        "lib/deep/er/ 755",
        r#"lib/deep/er/data 644 "d""#,
        "lib/link -> deep/er/../er/data",
        r#"lib/secret 600 "s""#,
        "up -> lib/../exec",
    ];
    check_both(&items, Ok(&expected));
    let (_outside, into, result) = unpack_safely(ArchiveFormat::Zip, &zip(&items), &BOUNDS);
    result.unwrap();
    assert_eq!(fs::read(into.join("lib/link")).unwrap(), b"d");
    assert_eq!(fs::read(into.join("up")).unwrap(), SCRIPT);
}

#[test]
fn exec_is_made_executable_and_special_bits_are_dropped() {
    check_both(&[file("exec", 0o6644, SCRIPT)], Ok(&[r##"exec 755 "#!/bin/sh\n""##]));
    check_both(&[file("exec", 0o4777, SCRIPT)], Ok(&[r##"exec 777 "#!/bin/sh\n""##]));
    check_both(
        &[exec(), directory("d/", 0o3777), file("d/s", 0o2711, b""), file("w", 0o222, b"")],
        Ok(&["d/ 777", r#"d/s 711 """#, r##"exec 755 "#!/bin/sh\n""##, r#"w 622 """#]),
    );
}

#[test]
fn archives_without_modes_get_the_usual_ones() {
    check_both(
        &[file("exec", 0, SCRIPT), file("a", 0, b""), directory("d/", 0)],
        Ok(&[r#"a 644 """#, "d/ 755", r##"exec 755 "#!/bin/sh\n""##]),
    );
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().system(zip::System::Dos).external_attributes(0x20);
    for name in ["exec", "b/c"] {
        writer.start_file(name, options).unwrap();
    }
    let bytes = writer.finish().unwrap().into_inner();
    check(ArchiveFormat::Zip, &bytes, Ok(&["b/ 755", r#"b/c 644 """#, r#"exec 755 """#]));
}

#[test]
fn exec_may_be_a_link_to_a_file() {
    check_both(
        &[link("exec", "current/run"), link("current", "v1"), file("v1/run", 0o640, SCRIPT)],
        Ok(&["current -> v1", "exec -> current/run", "v1/ 755", r##"v1/run 755 "#!/bin/sh\n""##]),
    );
}

#[test]
fn names_are_not_converted() {
    check_both(
        &[file("./exec", 0o755, b""), file("a/./b//c", 0o644, b""), file("a/x/../d\\e", 0o644, b"")],
        Ok(&["a/ 755", "a/b/ 755", r#"a/b/c 644 """#, r#"a/d\e 644 """#, r#"exec 755 """#]),
    );
    check_both(&[exec(), file(r"..\..\x", 0o644, b"")], Ok(&[r#"..\..\x 644 """#, r##"exec 755 "#!/bin/sh\n""##]));
    check_both(&[directory("./", 0o700), exec()], Ok(&[r##"exec 755 "#!/bin/sh\n""##]));
    check_tar(&[exec(), file("old/", 0o755, b"")], Ok(&[r##"exec 755 "#!/bin/sh\n""##, "old/ 755"]));
}

/// A zip whose names are kept as they are, made on the given system.
fn zip_of(system: u8, names: &[&str]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for name in names {
        writer.start_file(*name, SimpleFileOptions::default().external_attributes(0)).unwrap();
    }
    let mut bytes = writer.finish().unwrap().into_inner();
    // The upper byte of the version that made an entry, in the directory at the end.
    for at in memchr::memmem::find_iter(&bytes.clone(), b"PK\x01\x02") {
        bytes[at + 5] = system;
    }
    bytes
}

#[test]
fn backslashes_in_a_zip_from_windows_separate() {
    let names = ["exec", r"lib\util.py", r"lib\deep\", r"a/b\c", r"lib\.\x\..\y"];
    for system in [0, 6, 10, 14] {
        check(
            ArchiveFormat::Zip,
            &zip_of(system, &names),
            Ok(&[
                "a/ 755",
                "a/b/ 755",
                r#"a/b/c 644 """#,
                r#"exec 755 """#,
                "lib/ 755",
                "lib/deep/ 755",
                r#"lib/util.py 644 """#,
                r#"lib/y 644 """#,
            ]),
        );
    }
    // On Unix it is a character like any other.
    check(ArchiveFormat::Zip, &zip_of(3, &names[..2]), Ok(&[r#"exec 755 """#, r#"lib\util.py 644 """#]));
    check(
        ArchiveFormat::Zip,
        &zip_of(0, &[r"hello\exec"]),
        Err("the archive has no file `exec` at its root, but one in the directory `hello`; it contains `hello/exec`"),
    );
    for name in [r"..\..\x", r"\exec", r"\\server\share\exec", r"a\..\..\x"] {
        check(
            ArchiveFormat::Zip,
            &zip_of(0, &["exec", name]),
            Err(&format!(
                "archive entry 2 would be written outside the action's directory: `{}`",
                name.replace('\\', "/")
            )),
        );
    }
}

#[test]
fn drive_letters_are_refused() {
    for (system, name) in [(0, r"C:\hello\exec"), (0, "c:/hello/exec"), (10, "C:exec"), (3, r"D:\exec")] {
        let message =
            format!("archive entry 2 has a drive letter in its path, as on Windows: {}", excerpt(name.as_bytes()));
        check(ArchiveFormat::Zip, &zip_of(system, &["exec", name]), Err(&message));
    }
    check(ArchiveFormat::Zip, &zip_of(3, &["exec", "C:/x"]), Ok(&["C:/ 755", r#"C:/x 644 """#, r#"exec 755 """#]));
}

#[test]
fn long_names_are_read() {
    let name = ["n".repeat(120), "m".repeat(120)].join("/");
    let target = format!("{name}/../{}", "x".repeat(100));
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(0);
    builder.append_data(&mut header, &name, &[][..]).unwrap();
    header.set_entry_type(EntryType::Symlink);
    builder.append_link(&mut header, "link", &target).unwrap();
    header.set_entry_type(EntryType::Regular);
    builder.append_pax_extensions([("path", name.replace('n', "p").as_bytes())]).unwrap();
    builder.append_data(&mut header, "short", &[][..]).unwrap();
    builder.append_data(&mut header, "exec", &[][..]).unwrap();
    let [n, m, p] = ["n", "m", "p"].map(|name| name.repeat(120));
    let expected = [
        r#"exec 755 """#.into(),
        format!("link -> {target}"),
        format!("{n}/ 755"),
        format!("{n}/{m} 644 \"\""),
        format!("{p}/ 755"),
        format!("{p}/{m} 644 \"\""),
    ];
    check(ArchiveFormat::TarGz, &gzip(&builder.into_inner().unwrap()), Ok(&expected.each_ref().map(String::as_str)));
    let long = "o".repeat(300);
    check(
        ArchiveFormat::Zip,
        &zip(&[file(&long, 0o644, b"")]),
        Err(&format!(
            "the zip archive is damaged or incomplete: entry 1 {} has a path that is too long for this system",
            excerpt(long.as_bytes())
        )),
    );
}

#[test]
fn paths_that_leave_the_directory_are_refused() {
    for name in ["../../x", "/tmp/x", "a/../../x", "..", "a/b/../../../x", "/"] {
        let message =
            format!("archive entry 2 would be written outside the action's directory: {}", excerpt(name.as_bytes()));
        check_both(&[exec(), file(name, 0o644, b"evil")], Err(&message));
        check_both(&[exec(), link(name, "a")], Err(&message));
        check_tar(&[exec(), directory(name, 0o777)], Err(&message));
        check_tar(&[exec(), hard_link(name, "exec")], Err(&message));
    }
    check(
        ArchiveFormat::Zip,
        &zip(&[exec(), directory("../d/", 0o777)]),
        Err("archive entry 2 would be written outside the action's directory: `../d/`"),
    );
}

#[test]
fn impossible_names_are_refused() {
    check_both(
        &[file("a/..", 0o644, b"")],
        Err("the {format} archive is damaged or incomplete: entry 1 `a/..` stands where the directory itself is"),
    );
    check(
        ArchiveFormat::Zip,
        &patched(zip(&[file("axb", 0o644, b"")]), b"axb", b"a\0b"),
        Err("the zip archive is damaged or incomplete: entry 1 `a\\u{0}b` has a path with a NUL byte in it"),
    );
}

#[test]
fn links_that_lead_outside_are_kept_as_they_are() {
    let targets = ["/etc/passwd", "/", "..", "../secret", "a/../../x", "./..", "d/../../..", "missing/../.."];
    for target in targets {
        check_both(
            &[exec(), link("link", target), directory("d/", 0o755)],
            Ok(&["d/ 755", r##"exec 755 "#!/bin/sh\n""##, &format!("link -> {target}")]),
        );
    }
    // Relative to the directory of the link, and through other links.
    check_both(
        &[exec(), link("d/a", "b/../.."), link("d/b", "../e"), directory("e/", 0o755), link("d/in", "../exec")],
        Ok(&["d/ 755", "d/a -> b/../..", "d/b -> ../e", "d/in -> ../exec", "e/ 755", r##"exec 755 "#!/bin/sh\n""##]),
    );
    // As `python3 -m venv` makes them.
    check_both(
        &[
            exec(),
            link("venv/bin/python", "python3"),
            link("venv/bin/python3", "/usr/bin/python3"),
            link("venv/lib64", "lib"),
        ],
        Ok(&[
            r##"exec 755 "#!/bin/sh\n""##,
            "venv/ 755",
            "venv/bin/ 755",
            "venv/bin/python -> python3",
            "venv/bin/python3 -> /usr/bin/python3",
            "venv/lib64 -> lib",
        ]),
    );
}

#[test]
fn links_in_a_circle_are_refused() {
    let circle = "the {format} archive is damaged or incomplete: \
         entry 2 `a` is a link that leads in a circle, or through too many others";
    check_both(&[exec(), link("a", "b"), link("b", "a")], Err(circle));
    check_both(&[exec(), link("a", "a/a/a/a")], Err(circle));
}

#[test]
fn exec_may_be_a_link_to_a_program_of_the_image() {
    check_both(&[link("exec", "/bin/sh")], Ok(&["exec -> /bin/sh"]));
    check_both(
        &[link("exec", "venv/python"), link("venv/python", "/bin/sh")],
        Ok(&["exec -> venv/python", "venv/ 755", "venv/python -> /bin/sh"]),
    );
    // `unpack_safely` checks that the mode of the file outside stays what it is.
    check_both(&[link("exec", "../../../secret")], Ok(&["exec -> ../../../secret"]));
    for target in ["/nowhere/program", "/etc", "/dev/null", "../nothing", ".."] {
        check_both(
            &[link("exec", target)],
            Err(&format!(
                "the archive has no file `exec` at its root, but a link to `{target}`, which is not a file here; it contains `exec`"
            )),
        );
    }
}

#[test]
fn nothing_is_written_through_a_link() {
    let below = "the {format} archive is damaged or incomplete: \
         entry 2 `a/x` would have to be below `a`, which is not a directory";
    check_both(&[link("a", "d"), file("a/x", 0o644, b"evil"), directory("d/", 0o755)], Err(below));
    check_both(&[link("a", "../.."), file("a/x", 0o644, b"evil")], Err(below));
    check_both(&[link("a", "/tmp"), file("a/x", 0o644, b"evil")], Err(below));
    check_tar(&[link("a", "../.."), hard_link("a/x", "a")], Err(&below.replace("{format}", "tar.gz")));
    check_both(&[file("a", 0o644, b""), file("a/x", 0o644, b"evil")], Err(below));
    check_tar(
        &[link("a", "../../secret"), file("a", 0o644, b"new"), exec()],
        Ok(&[r#"a 644 "new""#, r##"exec 755 "#!/bin/sh\n""##]),
    );
    // Not even the mode of the file behind the link changes.
    check_tar(&[file("exec", 0o755, b""), link("exec", "../../../secret")], Ok(&["exec -> ../../../secret"]));
}

#[test]
fn later_files_and_links_replace_earlier_ones() {
    let items = [
        file("a", 0o600, b"old"),
        hard_link("kept", "a"),
        file("./a", 0o644, b"new"),
        link("b", "a"),
        file("b", 0o644, b"b"),
        file("c", 0o644, b"c"),
        link("c", "a"),
        exec(),
    ];
    check_tar(
        &items,
        Ok(&[r#"a 644 "new""#, r#"b 644 "b""#, "c -> a", r##"exec 755 "#!/bin/sh\n""##, r#"kept 600 "old""#]),
    );
    check(
        ArchiveFormat::Zip,
        &zip(&[file("a", 0o600, b"old"), file("./a", 0o644, b"new"), exec()]),
        Ok(&[r#"a 644 "new""#, r##"exec 755 "#!/bin/sh\n""##]),
    );
    check(
        ArchiveFormat::Zip,
        &patched(zip(&[file("aa", 0o600, b"old"), file("bb", 0o644, b"new"), exec()]), b"aa", b"bb"),
        Ok(&[r#"bb 644 "new""#, r##"exec 755 "#!/bin/sh\n""##]),
    );
}

#[test]
fn files_and_directories_do_not_replace_each_other() {
    check_both(
        &[file("a/b", 0o644, b""), file("./a", 0o644, b"")],
        Err("the {format} archive is damaged or incomplete: \
             entry 2 `./a` is not a directory where an earlier entry is one"),
    );
    check_both(
        &[file("a", 0o644, b""), directory("a/", 0o755)],
        Err("the {format} archive is damaged or incomplete: \
             entry 2 `a/` is a directory where an earlier entry is not"),
    );
    check_both(
        &[link("a", "b"), directory("a/", 0o755)],
        Err("the {format} archive is damaged or incomplete: \
             entry 2 `a/` is a directory where an earlier entry is not"),
    );
}

#[test]
fn a_hard_link_to_a_link_is_another_link() {
    check_tar(
        &[exec(), link("l", "exec"), hard_link("d/same", "l"), hard_link("out", "venv"), link("venv", "/usr")],
        Err(
            "the tar.gz archive is damaged or incomplete: entry 4 `out` is a hard link to `venv`, which is no earlier file",
        ),
    );
    // As GNU tar packs two names of one link: by its text, which leads from the directory of each.
    check_tar(
        &[
            exec(),
            link("l", "exec"),
            hard_link("d/same", "l"),
            hard_link("l", "l"),
            link("out", "/usr"),
            hard_link("again", "out"),
        ],
        Ok(&["again -> /usr", "d/ 755", "d/same -> exec", r##"exec 755 "#!/bin/sh\n""##, "l -> exec", "out -> /usr"]),
    );
}

#[test]
fn hard_links_must_name_earlier_files() {
    check_tar(
        &[exec(), hard_link("d/same", "./exec"), hard_link("exec", "exec")],
        Ok(&["d/ 755", r##"d/same 755 "#!/bin/sh\n""##, r##"exec 755 "#!/bin/sh\n""##]),
    );
    for target in ["/etc/passwd", "../../secret", "d/../../x"] {
        let message =
            format!("archive entry 2, `h`, links outside the action's directory: {}", excerpt(target.as_bytes()));
        check_tar(&[exec(), hard_link("h", target)], Err(&message));
    }
    for (target, before) in [("later", exec()), ("d", directory("d/", 0o755)), ("", exec())] {
        let message = format!(
            "the tar.gz archive is damaged or incomplete: entry 2 `h` is a hard link to {}, which is no earlier file",
            excerpt(target.as_bytes())
        );
        check_tar(&[before, hard_link("h", target), file("later", 0o644, b"")], Err(&message));
    }
}

#[test]
fn impossible_link_targets_are_refused() {
    let impossible = |format: &str, target: &str| {
        format!(
            "the {format} archive is damaged or incomplete: entry 1 `l` is a link with an impossible target: {}",
            excerpt(target.as_bytes())
        )
    };
    check_both(&[link("l", "")], Err(&impossible("{format}", "")));
    check(ArchiveFormat::Zip, &zip(&[link("l", "a\0b")]), Err(&impossible("zip", "a\0b")));
    check(ArchiveFormat::Zip, &zip(&[link("l", &"x".repeat(9000))]), Err(&impossible("zip", &"x".repeat(4096))));
    // The longest possible target.
    let target = format!("{}exec", "./".repeat(2045));
    check(
        ArchiveFormat::Zip,
        &zip(&[exec(), link("l", &target)]),
        Ok(&[r##"exec 755 "#!/bin/sh\n""##, &format!("l -> {target}")]),
    );
}

#[test]
fn devices_and_fifos_are_refused() {
    check_both(
        &[exec(), Item::Special("pipe".into(), EntryType::Fifo)],
        Err("archive entry 2 is a fifo, not a file, directory or link: `pipe`"),
    );
    check_both(
        &[exec(), Item::Special("null".into(), EntryType::Char)],
        Err("archive entry 2 is a character device, not a file, directory or link: `null`"),
    );
    check_tar(
        &[exec(), Item::Special("sda".into(), EntryType::Block)],
        Err("archive entry 2 is a block device, not a file, directory or link: `sda`"),
    );
    check_tar(
        &[exec(), Item::Special("label".into(), EntryType::new(b'V'))],
        Err("archive entry 2 is a tar record of an unknown type, not a file, directory or link: `label`"),
    );
    check_tar(
        &[Item::Special("pax_global_header".into(), EntryType::XGlobalHeader), exec()],
        Ok(&[r##"exec 755 "#!/bin/sh\n""##]),
    );
}

#[test]
fn bytes_are_bounded() {
    let message = "the archive unpacks to more than the 1048576 bytes that are accepted";
    check_both(&[exec(), file("bomb", 0o644, &vec![0; 10 << 20])], Err(message));
    let half = vec![7; 1 << 19];
    let fits = [file("exec", 0o755, &half), file("b", 0o644, &half)];
    let over = [file("exec", 0o755, &half), file("b", 0o644, &half), file("c", 0o644, b"1")];
    // Replaced files count.
    let again = [file("exec", 0o755, &half), file("./exec", 0o755, &half), file(".//exec", 0o755, b"1")];
    for (format, pack) in
        [(ArchiveFormat::Zip, zip as fn(&[Item]) -> _), (ArchiveFormat::TarGz, |items| gzip(&tar(items)))]
    {
        let (_outside, into, result) = unpack_safely(format, &pack(&fits), &BOUNDS);
        result.unwrap();
        assert_eq!(fs::metadata(into.join("b")).unwrap().len(), 1 << 19);
        check(format, &pack(&over), Err(message));
        check(format, &pack(&again), Err(message));
    }
    // Never more than the limit on disk, whatever the size of a read.
    let (_outside, into, result) =
        unpack_safely(ArchiveFormat::Zip, &zip(&[file("bomb", 0o644, &vec![0; 10 << 20])]), &BOUNDS);
    assert_eq!(result.unwrap_err().code(), "PL038");
    assert!(fs::metadata(into.join("bomb")).unwrap().len() <= BOUNDS.bytes);
}

#[test]
fn holes_of_sparse_files_count() {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..4].copy_from_slice(b"hole");
    header.set_entry_type(EntryType::GNUSparse);
    header.set_mode(0o644);
    header.set_size(0);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(1 << 33);
    gnu.sparse[0].set_offset(1 << 33);
    gnu.sparse[0].set_length(0);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, &[][..]).unwrap();
    check(
        ArchiveFormat::TarGz,
        &gzip(&builder.into_inner().unwrap()),
        Err("the archive unpacks to more than the 1048576 bytes that are accepted"),
    );
}

/// Packs a sparse file, `data`, and `exec` with a command, and checks that both are unpacked whole.
#[track_caller]
fn check_sparse(command: &str, archive: &str) {
    use std::os::unix::fs::FileExt;

    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("exec"), SCRIPT).unwrap();
    fs::set_permissions(path("exec"), fs::Permissions::from_mode(0o755)).unwrap();
    // Data after a hole, between holes, and a hole at the end; and a file that is one hole.
    let data = fs::File::create(path("data")).unwrap();
    for (at, content) in [(0, &b"begin"[..]), (100_000, b"middle"), (200_000, b"near the end")] {
        data.write_all_at(content, at).unwrap();
    }
    data.set_len(300_000).unwrap();
    fs::File::create(path("hole")).unwrap().set_len(100_000).unwrap();
    let output = std::process::Command::new("bash")
        .args(["-c", &format!("set -e; {command}")])
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    let packed = fs::read(path("archive")).unwrap();
    let plain = String::from_utf8_lossy(&packed).into_owned();
    assert!(plain.contains(archive), "`{command}` makes no such archive");
    assert!(packed.len() < 150_000, "`{command}` packs the holes");
    let (_outside, into, result) = unpack_safely(ArchiveFormat::TarGz, &gzip(&packed), &BOUNDS);
    result.unwrap();
    for name in ["exec", "data", "hole"] {
        assert!(
            fs::read(into.join(name)).unwrap() == fs::read(path(name)).unwrap(),
            "{command}: {name} is another file"
        );
    }
    assert_eq!(fs::read_dir(&into).unwrap().count(), 3, "{command}");
}

#[test]
fn sparse_files_of_gnu_tar_are_unpacked_whole() {
    let names = "exec data hole";
    check_sparse(&format!("tar -S --format=gnu -cf archive {names}"), "data");
    for (version, attribute) in [("0.0", "GNU.sparse.numbytes"), ("0.1", "GNU.sparse.map"), ("1.0", "GNU.sparse.major")]
    {
        check_sparse(&format!("tar -S --format=pax --sparse-version={version} -cf archive {names}"), attribute);
    }
}

#[test]
fn sparse_files_of_bsdtar_are_unpacked_whole() {
    check_sparse("bsdtar -cf archive exec data hole", "GNU.sparse.major");
}

/// A tar with a sparse file: its attributes, and its content.
fn sparse_tar(attributes: &[(&str, &str)], content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(SCRIPT.len() as u64);
    builder.append_data(&mut header, "exec", SCRIPT).unwrap();
    builder.append_pax_extensions(attributes.iter().map(|(key, value)| (*key, value.as_bytes()))).unwrap();
    header.set_size(content.len() as u64);
    builder.append_data(&mut header, "GNUSparseFile.0/s", content).unwrap();
    gzip(&builder.into_inner().unwrap())
}

/// The map of form 1.0, padded to a whole block, and the data after it.
fn mapped(map: &str, data: &[u8]) -> Vec<u8> {
    let mut content = map.as_bytes().to_vec();
    content.resize(content.len().next_multiple_of(512), 0);
    content.extend_from_slice(data);
    content
}

const FORM_1_0: &[(&str, &str)] =
    &[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "s"), ("GNU.sparse.realsize", "9")];

#[test]
fn maps_of_sparse_files_are_checked() {
    let exec = r##"exec 755 "#!/bin/sh\n""##;
    let whole = [exec, r#"s 644 "\0\0ab\0\0c\0\0""#];
    check(ArchiveFormat::TarGz, &sparse_tar(FORM_1_0, &mapped("2\n2\n2\n6\n1\n", b"abc")), Ok(&whole));
    let in_attributes = |map| {
        [("GNU.sparse.size", "9"), ("GNU.sparse.numblocks", "2"), ("GNU.sparse.map", map), ("GNU.sparse.name", "s")]
    };
    check(ArchiveFormat::TarGz, &sparse_tar(&in_attributes("2,2,6,1"), b"abc"), Ok(&whole));
    // A map of several blocks.
    let segments: String = (0..200).map(|_| "9\n0\n").collect();
    check(
        ArchiveFormat::TarGz,
        &sparse_tar(FORM_1_0, &mapped(&format!("201\n2\n1\n{segments}"), b"a")),
        Ok(&[exec, r#"s 644 "\0\0a\0\0\0\0\0\0""#]),
    );
    let wrong = |what: &str| {
        format!(
            "the tar.gz archive is damaged or incomplete: entry 2 `s` is a sparse file with a wrong map: it has {what}"
        )
    };
    for (map, data, what) in [
        ("1\n8\n2\n", &b"ab"[..], "segments that overlap or reach past the end"),
        ("2\n2\n2\n3\n1\n", b"abc", "segments that overlap or reach past the end"),
        ("1\n18446744073709551615\n2\n", b"ab", "segments that overlap or reach past the end"),
        ("1\n2\n3\n", b"ab", "515 bytes with its map, but the entry has 514"),
        ("1\n2\n1\n", b"ab", "513 bytes with its map, but the entry has 514"),
        ("x\n2\n1\n", b"a", "something other than a number"),
        ("\n2\n1\n", b"a", "something other than a number"),
        ("111111111111111111111\n2\n1\n", b"a", "a number that is too long"),
        ("2\n2\n1\n", b"a", "a number that is too long"),
        ("1\n-2\n1\n", b"a", "something other than a number"),
    ] {
        check(ArchiveFormat::TarGz, &sparse_tar(FORM_1_0, &mapped(map, data)), Err(&wrong(what)));
    }
    check(
        ArchiveFormat::TarGz,
        &sparse_tar(FORM_1_0, b"9999\n"),
        Err("the tar.gz archive is damaged or incomplete: entry 2 `s` cannot be read: failed to fill whole buffer"),
    );
    check(
        ArchiveFormat::TarGz,
        &sparse_tar(&in_attributes("2,2,6"), b"abc"),
        Err(&wrong("a segment without a length")),
    );
    check(
        ArchiveFormat::TarGz,
        &sparse_tar(&in_attributes("2,2"), b"abc"),
        Err(&wrong("1 segments in place of the announced number")),
    );
    let future = [("GNU.sparse.major", "2"), ("GNU.sparse.name", "s")];
    check(ArchiveFormat::TarGz, &sparse_tar(&future, b""), Err(&wrong("the version 2.0, which is not supported")));
    check(ArchiveFormat::TarGz, &sparse_tar(&FORM_1_0[..3], b""), Err(&wrong("no size")));
    let large = [&FORM_1_0[..3], &[("GNU.sparse.realsize", "8589934592")]].concat();
    check(
        ArchiveFormat::TarGz,
        &sparse_tar(&large, &mapped("0\n", b"")),
        Err("the archive unpacks to more than the 1048576 bytes that are accepted"),
    );
}

#[test]
fn headers_are_bounded() {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..1].copy_from_slice(b"L");
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(3 << 20);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(3 << 20, b'n');
    check(
        ArchiveFormat::TarGz,
        &gzip(&bytes),
        Err("the tar.gz archive is damaged or incomplete: the headers of one entry take more than 1048576 bytes"),
    );
}

#[test]
fn entries_are_bounded_and_implied_directories_count() {
    let message = "the archive has more than the 50 entries that are accepted";
    let mut items: Vec<_> = (0..49).map(|number| file(&format!("f{number}"), 0o644, b"")).collect();
    items.push(exec());
    for (format, pack) in
        [(ArchiveFormat::Zip, zip as fn(&[Item]) -> _), (ArchiveFormat::TarGz, |items| gzip(&tar(items)))]
    {
        assert_eq!(unpack_safely(format, &pack(&items), &BOUNDS).2.map_err(|error| error.to_string()), Ok(()));
    }
    items.push(file("one/more", 0o644, b""));
    check_both(&items, Err(message));
    items.truncate(49);
    items.push(file("one/more", 0o644, b""));
    check_both(&items, Err(message));
    check_both(&[file(&format!("{}f", "d/".repeat(49)), 0o644, b""), exec()], Err(message));
}

#[test]
fn damaged_zip_archives_say_what_is_wrong() {
    check(
        ArchiveFormat::Zip,
        b"PK\x03\x04",
        Err("the zip archive is damaged or incomplete: \
             its directory, which stands at its end, cannot be read: could not find EOCD"),
    );
    let stored = {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        writer.start_file("exec", options).unwrap();
        writer.write_all(b"content").unwrap();
        writer.finish().unwrap().into_inner()
    };
    check(ArchiveFormat::Zip, &stored, Ok(&[r#"exec 755 "content""#]));
    check(
        ArchiveFormat::Zip,
        &patched(stored.clone(), b"content", b"Content"),
        Err("the zip archive is damaged or incomplete: entry 1 `exec` cannot be read: invalid checksum"),
    );
    // The flags and the method follow the version that is needed to extract.
    let central = memchr::memmem::find(&stored, b"PK\x01\x02").unwrap();
    let mut encrypted = stored.clone();
    encrypted[central + 8] |= 1;
    check(
        ArchiveFormat::Zip,
        &encrypted,
        Err("the zip archive uses an unsupported feature: entry 1 `exec` is encrypted"),
    );
    let mut bzip2 = stored.clone();
    bzip2[central + 10] = 12;
    check(
        ArchiveFormat::Zip,
        &bzip2,
        Err("the zip archive uses an unsupported feature: \
             entry 1 `exec` uses a compression method that is not supported; deflate and stored are"),
    );
    let mut understated = stored.clone();
    understated[central + 24] = 3;
    check(
        ArchiveFormat::Zip,
        &understated,
        Err("the zip archive is damaged or incomplete: \
             entry 1 `exec` cannot be read: file is larger than its declared uncompressed size"),
    );
    let mut overstated = stored;
    overstated[central + 24..central + 28].copy_from_slice(&[0xff, 0xff, 0xff, 0x7f]);
    check(ArchiveFormat::Zip, &overstated, Ok(&[r#"exec 755 "content""#]));
}

#[test]
fn damaged_tar_archives_say_what_is_wrong() {
    let no_tar = "the uploaded code cannot be an action: it is a gzip file that does not contain a tar archive, but ";
    check(ArchiveFormat::TarGz, &gzip(b"hello"), Err(&format!("{no_tar}text")));
    check(ArchiveFormat::TarGz, &gzip(&[b'x'; 2000]), Err(&format!("{no_tar}text")));
    check(ArchiveFormat::TarGz, &gzip(b"#!/bin/sh\n"), Err(&format!("{no_tar}a script")));
    let early = "the tar.gz archive is damaged or incomplete: its gzip stream ends too early";
    check(ArchiveFormat::TarGz, b"\x1f\x8b", Err(early));
    let whole = gzip(&tar(&[exec(), file("a", 0o644, &vec![1; 5000])]));
    for length in [11, 100, whole.len() - 9, whole.len() - 8, whole.len() - 1] {
        check(ArchiveFormat::TarGz, &whole[..length], Err(early));
    }
    let mut checksum = whole.clone();
    let at = checksum.len() - 8;
    checksum[at] ^= 1;
    check(
        ArchiveFormat::TarGz,
        &checksum,
        Err("the tar.gz archive is damaged or incomplete: \
             its gzip stream is broken: corrupt gzip stream does not have a matching checksum"),
    );
    let plain = tar(&[exec(), file("a", 0o644, &vec![1; 5000])]);
    check(
        ArchiveFormat::TarGz,
        &gzip(&plain[..4000]),
        Err("the tar.gz archive is damaged or incomplete: entry 2 `a` ends after 2464 of its 5000 bytes"),
    );
    let mut second = plain;
    second[1024] ^= 1;
    check(
        ArchiveFormat::TarGz,
        &gzip(&second),
        Err("the tar.gz archive is damaged or incomplete: \
             entry 2 cannot be read: archive header checksum mismatch"),
    );
}

#[test]
fn gzip_may_have_several_members_and_trailing_garbage() {
    let plain = tar(&[exec(), file("a", 0o644, &vec![1; 600])]);
    let expected = format!("a 644 {:?}", "\u{1}".repeat(600));
    let expected = [&expected, r##"exec 755 "#!/bin/sh\n""##];
    for cut in [0, 100, 512, 1500, plain.len()] {
        let mut bytes = [gzip(&plain[..cut]), gzip(&plain[cut..]), gzip(b"")].concat();
        check(ArchiveFormat::TarGz, &bytes, Ok(&expected));
        bytes.extend_from_slice(&[0; 100]);
        check(ArchiveFormat::TarGz, &bytes, Ok(&expected));
    }
    check(ArchiveFormat::TarGz, &gzip(&[&plain[..], b"garbage"].concat()), Ok(&expected));
    check(ArchiveFormat::TarGz, &gzip(&[&plain[..], &vec![0; 3 << 20]].concat()), Ok(&expected));
}

#[test]
fn archives_without_exec_say_what_they_hold() {
    check_both(&[], Err("the archive has no file `exec` at its root; it contains nothing"));
    check(ArchiveFormat::TarGz, &gzip(b""), Err("the archive has no file `exec` at its root; it contains nothing"));
    check_both(
        &[file("action/a.py", 0o644, b""), file("action/exec", 0o755, b""), file("z", 0o644, b""), link("l", "z")],
        Err(
            "the archive has no file `exec` at its root, but one in the directory `action`; it contains `action/exec`, `l`, `z`, `action/a.py`",
        ),
    );
    check_both(
        &[directory("exec/", 0o755), file("z", 0o644, b"")],
        Err("the archive has no file `exec` at its root, but a directory of that name; it contains `exec/`, `z`"),
    );
    check_both(
        &[link("exec", "bin/run"), directory("bin/", 0o755)],
        Err(
            "the archive has no file `exec` at its root, but a link to `bin/run`, which is not a file in the archive; it contains `exec`, `bin/`",
        ),
    );
    // The kernel finds nothing below a name that does not exist, nor below a file.
    for target in ["no/../run", "no/such/../../run", "run/", "run/.", "run/../run"] {
        check_both(
            &[link("exec", target), file("run", 0o755, b"")],
            Err(&format!(
                "the archive has no file `exec` at its root, but a link to `{target}`, which is not a file in the archive; it contains `exec`, `run`"
            )),
        );
    }
    check_both(
        &[link("exec", "bin"), file("bin/run", 0o755, b"")],
        Err(
            "the archive has no file `exec` at its root, but a link to `bin`, which is not a file in the archive; it contains `exec`, `bin/run`",
        ),
    );
    let many: Vec<_> = (0..25).map(|number| file(&format!("f{number:02}"), 0o644, b"")).collect();
    check_both(
        &many,
        Err("the archive has no file `exec` at its root; it contains `f00`, `f01`, `f02`, `f03`, `f04`, `f05`, \
             `f06`, `f07`, `f08`, `f09` and 15 more"),
    );
}

#[test]
fn a_directory_that_cannot_be_written_is_reported() {
    let nowhere = Path::new("/proc/nowhere");
    let error = unpack(ArchiveFormat::Zip, &zip(&[exec()]), nowhere, &BOUNDS).unwrap_err();
    assert!(
        matches!(&error, Error::Upload(UploadError::Unwritable { path, .. }) if path == &nowhere.join("exec")),
        "{error:?}"
    );
}

/// An archive with every kind of entry.
fn sample(format: ArchiveFormat) -> Vec<u8> {
    let items = [
        exec(),
        directory("lib/", 0o755),
        file("lib/a", 0o600, &b"abc".repeat(500)),
        link("lib/b", "../exec"),
        link("c", "lib"),
    ];
    match format {
        ArchiveFormat::Zip => zip(&items),
        ArchiveFormat::TarGz => gzip(&tar(&items)),
    }
}

fn any_format() -> impl Strategy<Value = ArchiveFormat> {
    prop_oneof![Just(ArchiveFormat::Zip), Just(ArchiveFormat::TarGz)]
}

/// Paths of few different names, so that they collide.
fn any_path() -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop_oneof![3 => Just("a"), 3 => Just("b"), 2 => Just("c"), 2 => Just(".."), 1 => Just(".")],
        1..5,
    )
    .prop_map(|names| names.join("/"))
}

fn any_name() -> impl Strategy<Value = String> {
    prop::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")], 1..4)
        .prop_map(|names| names.join("/"))
}

fn any_item() -> impl Strategy<Value = Item> {
    prop_oneof![
        1 => any_name().prop_map(|name| directory(&format!("{name}/"), 0o755)),
        1 => any_name().prop_map(|name| file(&name, 0o644, b"x")),
        4 => (any_name(), any_path()).prop_map(|(name, target)| link(&name, &target)),
        1 => any_name().prop_map(|name| link(&name, "../../../secret")),
        1 => (any_name(), any_path()).prop_map(|(name, target)| hard_link(&name, &target)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_truncated_archive_is_an_error(format in any_format(), cut in any::<prop::sample::Index>()) {
        let whole = sample(format);
        let (_outside, _into, result) = unpack_safely(format, &whole[..cut.index(whole.len())], &BOUNDS);
        prop_assert_eq!(result.unwrap_err().code(), "PL034");
    }

    #[test]
    fn changed_bytes_do_no_harm(
        format in any_format(),
        inner in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = if inner && format == ArchiveFormat::TarGz {
            tar(&[exec(), directory("lib/", 0o755), file("lib/a", 0o600, b"abc"), link("c", "lib")])
        } else {
            sample(format)
        };
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if inner && format == ArchiveFormat::TarGz {
            bytes = gzip(&bytes);
        }
        let _ = unpack_safely(format, &bytes, &BOUNDS);
    }

    #[test]
    fn any_bytes_after_the_magic_do_no_harm(
        format in any_format(),
        wrapped in any::<bool>(),
        rest in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let bytes = match format {
            ArchiveFormat::Zip => [b"PK\x03\x04", &rest[..]].concat(),
            ArchiveFormat::TarGz if wrapped => gzip(&rest),
            ArchiveFormat::TarGz => [b"\x1f\x8b", &rest[..]].concat(),
        };
        unpack_safely(format, &bytes, &BOUNDS).2.unwrap_err();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// With any entries in any order, with links that lead through each other and outside. `unpack_safely` compares all
    /// files outside before and after.
    #[test]
    fn nothing_outside_changes_wherever_links_lead(items in prop::collection::vec(any_item(), 1..8), last in any::<bool>()) {
        let exec = [if last { link("exec", "a") } else { exec() }];
        let items = if last { [&items[..], &exec].concat() } else { [&exec, &items[..]].concat() };
        let (_outside, into, result) = unpack_safely(ArchiveFormat::TarGz, &gzip(&tar(&items)), &BOUNDS);
        let made = listing(&into).iter().any(|line| line.contains(" -> "));
        let no_exec = matches!(result, Err(Error::Upload(UploadError::ArchiveWithoutExec { .. })));
        prop_assert!(result.is_ok() || no_exec || !made, "links are made last");
    }
}
