//! Inspection finds the defects of broken files, and none in files that work.
//!
//! Wherever possible the kernel and the loader decide: a file that inspection refuses must not start, and inspection must
//! not refuse a file that starts.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use pipeloop::artifact::inspect::{Severity, TargetSystem, X86Level, inspect};
use serde_json::json;

use crate::support::bench::{ACTION, Bench};
use crate::support::{Proxy, archive, pipeloop, pipeloop_in, search_path};

/// Inspects an executable in its own directory, with this environment.
fn inspected(path: &Path, environment: &[(&str, &str)]) -> pipeloop::artifact::inspect::Inspection {
    let mut all = vec![("PATH".into(), search_path().into())];
    all.extend(environment.iter().map(|(name, value)| (name.into(), value.into())));
    inspect(path, &TargetSystem::new(Path::new("/"), path.parent().expect("it is a file"), &all))
}

/// Whether the kernel and the loader accept a file: it sends its handshake.
fn starts(path: &Path, environment: &[(&str, &str)]) -> bool {
    let mut command = Command::new(path);
    command.env_clear().env("PATH", search_path()).envs(environment.iter().copied());
    command.current_dir(path.parent().expect("it is a file")).stdin(std::process::Stdio::null());
    command.output().is_ok_and(|output| output.stdout == b"{\"openwhisk\":1}\n")
}

/// Asserts that the command line refuses a file with this code and these texts, and that the file does not start by
/// itself either.
#[track_caller]
fn refused(path: &Path, code: &str, status: i32, texts: &[&str]) {
    refused_with(path, &[], code, status, texts);
}

#[track_caller]
fn refused_with(path: &Path, environment: &[(&str, &str)], code: &str, status: i32, texts: &[&str]) {
    assert!(!starts(path, environment), "{} starts, but must not", path.display());
    let ended = pipeloop(&[OsStr::new("run"), path.as_os_str()], environment, "");
    ended.check(status).says(&[&format!("error[{code}]: cannot start the action `")]).says(texts).says(&["\nhint: "]);
}

/// Asserts that a program works, and that inspection finds no fatal defect.
#[track_caller]
fn works(path: &Path, environment: &[(&str, &str)]) {
    assert!(starts(path, environment), "{} does not start", path.display());
    let inspection = inspected(path, environment);
    assert_eq!(inspection.fatal().next(), None, "{}", path.display());
}

/// Asserts that an upload is refused over HTTP with these texts.
#[track_caller]
fn upload_refused(upload: &[u8], texts: &[&str]) {
    let proxy = Proxy::plain();
    proxy.init_binary(upload).check_error(502, texts);
    proxy.check_streams(0);
}

/// This machine, with the environment of actions in tests.
fn here() -> TargetSystem {
    TargetSystem::new(Path::new("/"), Path::new("/"), &[("PATH".into(), search_path().into())])
}

/// Every executable in the usual directories for programs.
fn executables() -> Vec<PathBuf> {
    let directories = ["/bin", "/usr/bin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/local/sbin"];
    let mut found: Vec<_> = directories
        .iter()
        .filter_map(|directory| fs::read_dir(directory).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter_map(|path| {
            let metadata = fs::metadata(&path).ok()?;
            (metadata.is_file() && metadata.permissions().mode() & 0o111 != 0).then(|| path.canonicalize().ok())?
        })
        .collect();
    found.sort();
    found.dedup();
    assert!(found.len() > 100, "this machine has few programs: {found:?}");
    found
}

#[test]
fn no_program_of_this_machine_is_refused() {
    let target = here();
    let mut refused = Vec::new();
    for path in executables() {
        let inspection = inspect(&path, &target);
        refused.extend(inspection.fatal().map(|defect| format!("{}: {defect} [{}]", path.display(), defect.code())));
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

/// Runs `ldd` for many programs at once: the path of each library, by program and name.
fn ldd(programs: &[PathBuf]) -> BTreeMap<PathBuf, BTreeMap<String, PathBuf>> {
    let output = Command::new("ldd").args(programs).output().expect("ldd is a part of glibc");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut all = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(program) = line.strip_suffix(':').filter(|line| !line.starts_with('\t')) {
            current = Some(PathBuf::from(program));
            all.insert(PathBuf::from(program), BTreeMap::new());
        } else if let Some((name, rest)) = line.trim().split_once(" => ")
            && let Some((path, _)) = rest.split_once(" (0x")
        {
            let libraries = all.get_mut(current.as_ref().expect("a program comes first")).expect("it was inserted");
            libraries.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    all
}

#[test]
fn inspection_and_the_loader_find_the_same_libraries() {
    let target = here();
    let found: BTreeMap<PathBuf, BTreeMap<String, PathBuf>> = executables()
        .into_iter()
        .filter(|path| path.starts_with("/usr/bin"))
        .map(|path| (path.clone(), inspect(&path, &target)))
        .filter(|(_, inspection)| inspection.what.contains("(glibc)"))
        .map(|(path, inspection)| {
            let name = |name: &std::ffi::OsStr| name.to_string_lossy().into_owned();
            (path, inspection.libraries.iter().map(|library| (name(&library.name), library.path.clone())).collect())
        })
        .collect();
    assert!(found.len() > 50, "this machine has few dynamic programs: {:?}", found.keys());
    let programs: Vec<_> = found.keys().cloned().collect();
    let listed = ldd(&programs);
    let mut compared = 0;
    for (program, libraries) in &found {
        let expected = &listed[program];
        compared += expected.len();
        assert_eq!(libraries, expected, "{}: found (left) and listed by ldd (right)", program.display());
    }
    assert!(compared > 200, "the output of ldd is not parsed correctly: {listed:?}");
}

/// The image has only the files that `ldd` lists for one program. Its loader is not a link into the directory of the
/// libraries, and no cache names that directory.
#[test]
fn a_program_that_was_copied_with_its_libraries_has_no_defect() {
    let image = tempfile::tempdir().expect("a temporary directory");
    let output = Command::new("ldd").arg("/bin/bash").output().expect("ldd is a part of glibc");
    let text = String::from_utf8_lossy(&output.stdout);
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
    for path in libraries.chain(["/bin/bash"]) {
        let copy = image.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(copy.parent().expect("it is in a directory")).expect("the directory can be written");
        fs::copy(path, copy).expect("the file can be copied");
    }
    let target = TargetSystem::new(image.path(), Path::new("/action"), &[]);
    let program = image.path().join("bin/bash");
    let inspection = inspect(&program, &target);
    let refused: Vec<_> = inspection.fatal().map(ToString::to_string).collect();
    assert!(refused.is_empty(), "{refused:?}");
    assert!(inspection.libraries.len() > 1, "{:?}", inspection.libraries);
    let library = inspection.libraries[0].path.strip_prefix("/").expect("an absolute path");
    fs::remove_file(image.path().join(library)).expect("it is there");
    assert_eq!(inspect(&program, &target).fatal().count(), 1, "without one of them it has a defect");
}

// The header of an ELF file.

#[test]
fn a_working_program_is_described() {
    let bench = Bench::new();
    let dynamic = bench.cc("dynamic", ACTION, &[]);
    works(&dynamic, &[]);
    assert_eq!(inspected(&dynamic, &[]).what, "ELF executable, x86_64, dynamically linked (glibc)");
    for flags in [["-static"].as_slice(), &["-static-pie"], &["-no-pie"], &["-s"]] {
        works(&bench.cc("other", ACTION, flags), &[]);
    }
    assert_eq!(
        inspected(&bench.cc("static", ACTION, &["-static-pie"]), &[]).what,
        "ELF executable, x86_64, statically linked"
    );
}

#[test]
fn a_binary_for_another_machine_or_system_is_refused() {
    let bench = Bench::new();
    fs::write(bench.path("main.go"), "package main\n\nfunc main() {}\n").expect("the directory can be written");
    let go = |system: &str, machine: &str| {
        let name = format!("{system}-{machine}");
        let env = [("GOOS", system), ("GOARCH", machine), ("CGO_ENABLED", "0"), ("GOFLAGS", "-mod=mod")];
        bench.tool("go", &["build", "-o", &name, "main.go"], &env);
        bench.path(&name)
    };
    refused(&go("linux", "arm64"), "PL070", 126, &["it is built for aarch64, this machine is x86_64", "GOARCH=amd64"]);
    refused(&go("freebsd", "amd64"), "PL070", 126, &["it is built for FreeBSD, this system is Linux"]);
    refused(&go("darwin", "arm64"), "PL044", 126, &["it is a Mach-O executable, for macOS", "GOOS=linux"]);
    refused(&go("windows", "amd64"), "PL044", 126, &["it is a PE executable, for Windows"]);
    refused(&go("wasip1", "wasm"), "PL044", 126, &["it is a WebAssembly module"]);
    let mut big_endian = fs::read(bench.cc("little", ACTION, &[])).expect("it was compiled");
    big_endian[5] = 2;
    big_endian[16..20].copy_from_slice(&[0, 3, 0, 22]);
    // In the other byte order the rest of the file makes no sense.
    refused(&bench.write("s390x", &big_endian), "PL072", 126, &["it is damaged or incomplete"]);
}

/// For an image, the machine of the image counts, not this one.
#[test]
fn a_binary_for_another_machine_than_the_image_has_a_defect() {
    let bench = Bench::new();
    fs::write(bench.path("main.go"), "package main\n\nfunc main() {}\n").expect("the directory can be written");
    let go = |machine: &str| {
        let env = [("GOOS", "linux"), ("GOARCH", machine), ("CGO_ENABLED", "0"), ("GOFLAGS", "-mod=mod")];
        bench.tool("go", &["build", "-o", machine, "main.go"], &env);
        bench.path(machine)
    };
    let (arm, amd, small) = (go("arm64"), go("amd64"), go("386"));
    let read = |path: &Path| fs::read(path).expect("it was built");
    bench.write("arm/bin/sh", read(&arm));
    bench.write("amd/usr/bin/env", read(&amd));
    bench.write("small/bin/busybox", read(&small));
    // Without a shell, the loader shows the machine. Links are followed inside the image.
    bench.write("loader/usr/lib/ld-linux-aarch64.so.1", read(&arm));
    std::os::unix::fs::symlink("/usr/lib", bench.path("loader/lib")).expect("the directory can be written");
    fs::create_dir(bench.path("scratch")).expect("the directory can be written");
    let check = |program: &Path, image: &str, expected: Option<&str>| {
        let root = bench.path(image);
        let inspection = inspect(program, &TargetSystem::new(&root, program.parent().expect("a file"), &[]));
        let found: Vec<_> = inspection.defects.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{} in {image}", program.display());
    };
    for image in ["arm", "loader"] {
        check(&arm, image, None);
        check(&amd, image, Some("it is built for x86_64, that image is for aarch64"));
    }
    check(&amd, "amd", None);
    check(&small, "amd", None);
    check(&arm, "amd", Some("it is built for aarch64, that image is for x86_64"));
    check(&amd, "small", Some("it is built for x86_64, that image is for x86 (32 bits)"));
    // An image without programs counts as one for this machine.
    check(&amd, "scratch", None);
    check(&arm, "scratch", Some("it is built for aarch64, this machine is x86_64"));
    let root = bench.path("arm");
    let args = ["check", amd.to_str().expect("text"), "--image-root", root.to_str().expect("text")];
    let ended = pipeloop(&args, &[], "");
    assert!(ended.check(126).stdout.contains("that image is for aarch64"), "{}", ended.stdout);
}

/// The loader may know more than inspection, such as a library to preload.
#[test]
fn inspection_can_be_turned_off() {
    let bench = Bench::new();
    let soname = ["-shared", "-fPIC", "-Wl,-soname,libone.so"];
    let library = bench.compile("gcc", "libone.so", "int one(void) { return 1; }", &soname);
    let answers = r#"
#include <stdio.h>
#include <stdlib.h>
int one(void);
int main(void) {
    char *line = NULL;
    size_t room = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("{\"openwhisk\":1}");
    while (getline(&line, &room, stdin) > 0) printf("{\"one\":%d}\n", one());
    return 0;
}
"#;
    let program = bench.compile("gcc", "preloaded", answers, &["libone.so"]);
    let (program, library) = (program.to_str().expect("text"), library.to_str().expect("text"));
    let preload = ("LD_PRELOAD", library);
    pipeloop(&["run", program], &[preload], "").check(127).says(&["error[PL075]: ", "`libone.so`"]);
    pipeloop(&["run", program], &[preload, ("PIPELOOP_INSPECT", "off")], "").check(0);
    let ended = pipeloop(&["check", "--inspect", "off", program], &[preload], "");
    assert!(ended.check(0).stdout.contains("! executable\n"), "{}", ended.stdout);
    // Then the loader reports a library that really is missing.
    let ended = pipeloop(&["run", program, "--inspect", "off"], &[], "");
    ended.check(127).says(&["error[PL051]: ", "error while loading shared libraries: libone.so"]);
}

/// The kernel may run it in an emulator, as for a container on a laptop with another processor. The emulator is not in a
/// directory of the container. The test registers a real emulator in a namespace, which Linux supports since 6.7.
#[test]
fn a_binary_for_another_machine_works_if_the_kernel_has_an_emulator() {
    let bench = Bench::new();
    let mut foreign = fs::read(bench.cc("native", ACTION, &[])).expect("it was compiled");
    foreign[18..20].copy_from_slice(&183_u16.to_le_bytes());
    bench.write("foreign", &foreign);
    bench.write("script", "#!./foreign\n");
    let emulator =
        "#!/bin/sh\necho '{\"openwhisk\":1}'\nwhile read line; do echo \"{\\\"runs\\\":\\\"$1\\\"}\"; done\n";
    let emulator = bench.write("emulator", emulator);
    // The magic matches any ELF file for aarch64. The mount hides the directory, which containers do not have.
    let register = format!(
        r#"set -e; directory=/proc/sys/fs/binfmt_misc; mount -t binfmt_misc none $directory
        printf %s ':foreign:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\xb7\x00::{}:' > $directory/register
        mount -t tmpfs none $directory; exec "$0" "$@""#,
        emulator.display()
    );
    let emulated = |args: &[&str]| {
        let output = Command::new("unshare")
            .args(["-rm", "sh", "-c", &register, env!("CARGO_BIN_EXE_pipeloop")])
            .args(args)
            .current_dir(&bench.directory)
            .output()
            .expect("`unshare` is here");
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    for name in ["foreign", "script"] {
        let (status, said) = emulated(&["run", name]);
        assert_eq!(status, Some(0), "{name}: {said}");
        assert!(said.contains("{\"runs\":\"") && said.contains("foreign\"}"), "{name}: {said}");
    }
    // A check reports it and goes on.
    let (status, said) = emulated(&["check", "foreign"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("it is built for aarch64, this machine is x86_64") && said.contains("ready"), "{said}");
    // Without an emulator, or if nothing is started, it is a failure.
    for (file, words) in [("foreign", "it is built for aarch64"), ("script", "its interpreter `./foreign` cannot")] {
        for options in [&["check"][..], &["check", "--no-start"]] {
            let path = bench.path(file);
            let args = [options, &[path.to_str().expect("text")]].concat();
            let ended = pipeloop_in(bench.directory.path(), &args, &[], "");
            let said = ended.check(126).stdout.clone();
            assert!(said.contains(words) && said.contains("this machine is x86_64"), "{args:?}: {said}");
        }
    }
}

/// If text has replaced the executable before a restart, the kernel refuses it, and no shell executes it.
#[test]
fn text_that_replaced_an_executable_is_never_run_by_a_shell() {
    let answer = "echo text > new; chmod +x new; echo 'touch taken' >> new; mv new exec; echo '{}'";
    let single = format!("#!/bin/sh\n{answer}\n");
    let stays = format!("#!/bin/sh\necho '{{\"openwhisk\":1}}'\nread line\n{answer}\n");
    for (protocol, script) in [("0", single), ("1", stays)] {
        let bench = Bench::new();
        bench.write("action/exec", script);
        let action = bench.path("action");
        let args = ["run", "--lines", "--protocol", protocol, action.to_str().expect("text")];
        let ended = pipeloop_in(&action, &args, &[], "{}\n{}\n");
        assert!(ended.stdout.starts_with("{}\n"), "{}", ended.stdout);
        assert!(
            ended.stderr.contains("PL032") && ended.stderr.contains("its first line is `text`"),
            "{}",
            ended.stderr
        );
        assert!(!action.join("taken").exists(), "a shell executed it");
    }
}

/// The test sets the level of the processor, since this one may have the highest.
#[test]
fn a_binary_for_newer_processors_is_refused() {
    let bench = Bench::new();
    let flags = ["-Wl,-z,x86-64-v3"];
    let program = bench.cc("v3", ACTION, &flags);
    let library = bench.library("libnewer.so", &["newer"], &["-Wl,-z,x86-64-v3", "-Wl,-soname,libnewer.so"]);
    let by_library = bench.program("by_library", &["newer"], &[library.to_str().expect("text"), "-Wl,-rpath,$ORIGIN"]);
    let plain = bench.cc("plain", ACTION, &[]);
    let with_musl = bench.compile("musl-gcc", "musl", ACTION, &flags);
    let found = |program: &Path, level| {
        let target =
            TargetSystem { x86_level: level, ..TargetSystem::new(Path::new("/"), bench.directory.path(), &[]) };
        inspect(program, &target).fatal().map(|defect| format!("{} {defect}", defect.code())).collect::<Vec<_>>()
    };
    let own = "PL088 it is built for newer processors: it needs x86-64-v3, this one is x86-64-v2";
    let others =
        "PL088 its library `libnewer.so` is built for newer processors: it needs x86-64-v3, this one is x86-64";
    assert_eq!(found(&program, Some(X86Level::V2)), [own]);
    assert_eq!(found(&by_library, Some(X86Level::V1)), [others]);
    for enough in [Some(X86Level::V3), Some(X86Level::V4), None] {
        assert_eq!(found(&program, enough), [""; 0], "{enough:?}");
        assert_eq!(found(&by_library, enough), [""; 0], "{enough:?}");
    }
    assert_eq!(found(&plain, Some(X86Level::V1)), [""; 0]);
    // musl's loader does not check the level.
    assert_eq!(found(&with_musl, Some(X86Level::V1)), [""; 0]);
}

#[test]
fn an_elf_file_that_is_not_a_program_is_refused() {
    let bench = Bench::new();
    refused(&bench.library("library", &["one"], &[]), "PL071", 126, &["it is a shared library, not a program"]);
    // With an entry point, as older linkers made libraries.
    let library = bench.library("begins", &["one"], &["-Wl,-e,one", "-Wl,--no-as-needed", "-lc"]);
    refused(&library, "PL071", 126, &["it is a shared library, not a program"]);
    let object = bench.cc("object", ACTION, &["-c"]);
    fs::set_permissions(&object, fs::Permissions::from_mode(0o755)).expect("the file can be changed");
    refused(&object, "PL071", 126, &["it is an object file, not a program", "gcc -o exec"]);
    let mut core = fs::read(bench.cc("whole", ACTION, &[])).expect("it was compiled");
    core[16] = 4;
    refused(&bench.write("core", core), "PL071", 126, &["it is a core dump, not a program"]);
}

#[test]
fn a_truncated_or_damaged_binary_is_refused() {
    let bench = Bench::new();
    let whole = fs::read(bench.cc("whole", ACTION, &[])).expect("it was compiled");
    refused(&bench.write("stump", &whole[..10]), "PL072", 126, &["its ELF header is cut off"]);
    refused(&bench.write("header", &whole[..64]), "PL072", 126, &["program headers lie beyond its end"]);
    let cut = format!("the file has {} bytes", whole.len() / 2);
    refused(&bench.write("half", &whole[..whole.len() / 2]), "PL072", 126, &["it is cut off", &cut]);
    let mut sizes = whole.clone();
    sizes[54] = 57;
    refused(&bench.write("sizes", sizes), "PL072", 126, &["program headers of 57 bytes, where 56 are expected"]);
    let without_loader = bench.cc("without-loader", ACTION, &["-Wl,--no-dynamic-linker"]);
    refused(&without_loader, "PL072", 126, &["needs shared libraries and names no loader"]);
    // It runs without its last bytes, so this is only a warning.
    let short = bench.write("short", &whole[..whole.len() - 8]);
    works(&short, &[]);
    assert!(
        inspected(&short, &[]).defects.iter().any(|defect| defect.severity() == Severity::Warning),
        "{:?}",
        inspected(&short, &[])
    );
}

/// Inspection gets a result, whichever byte of a header changes.
#[test]
fn any_changed_byte_of_a_header_is_inspected_without_panic() {
    let bench = Bench::new();
    bench.library("libone.so", &["one"], &[]);
    let program = bench.program("program", &["one"], &["libone.so", "-Wl,-rpath,$ORIGIN"]);
    let whole = fs::read(&program).expect("it was compiled");
    let scratch = bench.write("scratch", &whole);
    let dynamic = memchr::memmem::find(&whole, b"$ORIGIN").expect("it has a search path");
    let places = (0..64 + 13 * 56).chain(dynamic.saturating_sub(600)..dynamic + 16);
    for at in places {
        for value in [0, 1, 0x7f, 0xff] {
            let mut changed = whole.clone();
            changed[at] = value;
            fs::write(&scratch, &changed).expect("the file can be changed");
            let inspection = inspected(&scratch, &[]);
            assert!(!inspection.what.is_empty(), "byte {at} is {value}");
        }
    }
}

// Its loader and its libraries.

#[test]
fn a_missing_loader_is_named() {
    let bench = Bench::new();
    let glibc = bench.cc("glibc", ACTION, &["-Wl,--dynamic-linker=/nowhere/ld-linux-x86-64.so.2"]);
    refused(&glibc, "PL073", 126, &["its loader `/nowhere/ld-linux-x86-64.so.2` is missing"]);
    let nix = bench.cc("nix", ACTION, &["-Wl,--dynamic-linker=/nix/store/none/lib/ld-linux-x86-64.so.2"]);
    refused(&nix, "PL073", 126, &["built with Nix"]);
    bench.write("text", "no loader");
    let text = format!("-Wl,--dynamic-linker={}", bench.path("text").display());
    refused(&bench.cc("bad", ACTION, &[&text]), "PL074", 126, &["cannot be used: it is no ELF file"]);
    fs::set_permissions(bench.path("text"), fs::Permissions::from_mode(0o644)).expect("the file can be changed");
    refused(&bench.cc("bad", ACTION, &[&text]), "PL074", 126, &["cannot be used: it is not executable"]);
}

/// The images have only the loader of a C library.
#[test]
fn glibc_and_musl_are_distinguished_in_an_image() {
    let bench = Bench::new();
    let glibc = bench.cc("glibc", ACTION, &[]);
    let musl = bench.compile("musl-gcc", "musl", ACTION, &[]);
    let check = |program: &Path, image: &str, texts: &[&str]| {
        let root = bench.path(image);
        let inspection = inspect(program, &TargetSystem::new(&root, program.parent().expect("a file"), &[]));
        let found: Vec<_> = inspection.defects.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), usize::from(!texts.is_empty()), "{found:?}");
        for text in texts {
            assert!(found[0].contains(text), "{text:?} is missing in {found:?}");
        }
    };
    bench.write("alpine/lib/ld-musl-x86_64.so.1", fs::read("/lib/ld-musl-x86_64.so.1").expect("musl is here"));
    let loader = fs::canonicalize("/lib64/ld-linux-x86-64.so.2").expect("glibc is here");
    bench.write("debian/lib64/ld-linux-x86-64.so.2", fs::read(loader).expect("it can be read"));
    fs::create_dir(bench.path("scratch")).expect("the directory can be written");
    check(&glibc, "alpine", &["it is built for glibc and this image has musl", "/lib64/ld-linux-x86-64.so.2"]);
    check(&musl, "debian", &["it is built for musl and this image has glibc"]);
    check(&glibc, "scratch", &["this image has no C library"]);
    check(&musl, "alpine", &[]);
    // Its C library is searched in the image, not on this machine.
    check(&glibc, "debian", &["it needs a shared library that is missing: `libc.so.6`"]);
}

#[test]
fn programs_with_musl_are_inspected_by_the_rules_of_musl() {
    let bench = Bench::new();
    works(&bench.compile("musl-gcc", "plain", ACTION, &[]), &[]);
    works(&bench.compile("musl-gcc", "static", ACTION, &["-static"]), &[]);
    bench.compile("musl-gcc", "libs/libone.so", "int one(void) { return 1; }", &["-shared", "-fPIC"]);
    let calls =
        format!("int one(void);\n{}", ACTION.replace("int main(void) {", "int main(void) { if (!one()) return 1;"));
    let lost = bench.compile("musl-gcc", "lost", &calls, &["libs/libone.so"]);
    // A name with a slash is a path, relative to the directory in which it starts.
    works(&lost, &[]);
    let soname = ["-shared", "-fPIC", "-Wl,-soname,libone.so"];
    bench.compile("musl-gcc", "libs/libone.so", "int one(void) { return 1; }", &soname);
    let lost = bench.compile("musl-gcc", "lost", &calls, &["libs/libone.so"]);
    refused(&lost, "PL075", 127, &["it needs a shared library that is missing: `libone.so`"]);
    works(&lost, &[("LD_LIBRARY_PATH", bench.path("libs").to_str().expect("text"))]);
    for tags in ["-Wl,--enable-new-dtags", "-Wl,--disable-new-dtags"] {
        works(&bench.compile("musl-gcc", "found", &calls, &["libs/libone.so", tags, "-Wl,-rpath,$ORIGIN/libs"]), &[]);
        let unknown = bench.compile("musl-gcc", "unknown", &calls, &["libs/libone.so", tags, "-Wl,-rpath,$LIB/libs"]);
        refused(&unknown, "PL075", 127, &["`libone.so`"]);
    }
}

#[test]
fn all_missing_libraries_are_named_at_once() {
    let bench = Bench::new();
    let soname = |name: &str| format!("-Wl,-soname,{name}");
    let inner = bench.library("libinner.so", &["inner"], &[&soname("libinner.so.3")]);
    let source = "int inner(void); int outer(void) { return inner(); }";
    bench.cc(
        "libouter.so",
        source,
        &["-shared", "-fPIC", "libinner.so", &soname("libouter.so"), "-Wl,-rpath,/nowhere"],
    );
    let gone = bench.library("libgone.so", &["gone"], &[&soname("libgone.so.1")]);
    let also = bench.library("libalso.so", &["also"], &[&soname("libalso.so.2")]);
    let flags = ["libgone.so", "libalso.so", "libouter.so", "-Wl,-rpath,$ORIGIN", "-Wl,--allow-shlib-undefined"];
    let program = bench.program("program", &["gone", "also", "outer"], &flags);
    for library in [inner, gone, also] {
        fs::remove_file(library).expect("it was made");
    }
    let texts = [
        "it needs 3 shared libraries that are missing: ",
        "`libgone.so.1`, `libalso.so.2`, `libinner.so.3` (needed by `libouter.so`)",
        "$ORIGIN",
    ];
    refused(&program, "PL075", 127, &texts);
    let proxy = Proxy::plain();
    let upload = archive::zip(&[
        ("exec", &fs::read(&program).expect("it was compiled")),
        ("libouter.so", &fs::read(bench.path("libouter.so")).expect("it was compiled")),
    ]);
    proxy.init_binary(&upload).check_error(502, &texts);
    proxy.check_streams(0);
}

/// Inspection and the loader must agree, for every kind of search path that a linker can write.
#[test]
fn libraries_are_found_where_the_loader_finds_them() {
    let bench = Bench::new();
    let soname = ["-Wl,-soname,libinner.so"];
    bench.library("inner/libinner.so", &["inner"], &soname);
    let (new, old) = ("-Wl,--enable-new-dtags", "-Wl,--disable-new-dtags");
    let inner = bench.path("inner").display().to_string();
    let (inner_path, outer_path) = (format!("-Wl,-rpath,{inner}"), "-Wl,-rpath,$ORIGIN/outer".to_owned());
    let both = format!("-Wl,-rpath,$ORIGIN/outer:{inner}");
    let odd = "-Wl,-rpath,/$NOTHING:${ORIGIN}/outer:$ORIGIN/$LIB:$ORIGIN/../x".to_owned();
    let excluded = "-Wl,-z,nodefaultlib".to_owned();
    let outer = "int inner(void); int outer(void) { return inner(); }";
    let lib = ["-shared", "-fPIC", "-Wl,-soname,libouter.so", "inner/libinner.so"];
    let mut outcomes = BTreeMap::new();
    for outer_flags in [vec![], vec![new, &inner_path], vec![old, &inner_path]] {
        bench.cc("outer/libouter.so", outer, &[&lib, outer_flags.as_slice()].concat());
        for tags in [new, old] {
            for path in [&outer_path, &both, &odd, &excluded] {
                let flags = ["outer/libouter.so", tags, path, "-Wl,--allow-shlib-undefined"];
                let program = bench.program("program", &["outer"], &flags);
                for environment in
                    [vec![], vec![("LD_LIBRARY_PATH", inner.as_str())], vec![("LD_LIBRARY_PATH", "inner;outer")]]
                {
                    let (starts, inspection) = (starts(&program, &environment), inspected(&program, &environment));
                    assert_eq!(
                        inspection.fatal().next().is_none(),
                        starts,
                        "library {outer_flags:?}, program {tags} {path}, {environment:?}: {inspection:?}"
                    );
                    *outcomes.entry(starts).or_insert(0) += 1;
                }
            }
        }
    }
    // The table must have many cases of both outcomes.
    assert!(outcomes.len() == 2 && outcomes.values().all(|count| *count > 15), "{outcomes:?}");
}

/// Only the loader's cache names the directory of the library. The real `ldconfig` of an image writes the cache.
#[test]
fn the_cache_of_an_image_is_read() {
    let bench = Bench::new();
    let library = bench.library("image/opt/lib/libone.so.1", &["one"], &["-Wl,-soname,libone.so.1"]);
    let program = bench.program("program", &["one"], &[library.to_str().expect("text")]);
    let loader = fs::canonicalize("/lib64/ld-linux-x86-64.so.2").expect("glibc is here");
    let libc =
        inspected(&program, &[("LD_LIBRARY_PATH", bench.path("image/opt/lib").to_str().expect("text"))]).libraries;
    let libc = libc.iter().find(|library| library.name == "libc.so.6").expect("it is needed");
    bench.write("image/lib64/ld-linux-x86-64.so.2", fs::read(loader).expect("it can be read"));
    bench.write(&format!("image{}", libc.path.display()), fs::read(&libc.path).expect("it can be read"));
    bench.write("image/etc/ld.so.conf", "/opt/lib\n");
    let target = TargetSystem::new(&bench.path("image"), bench.directory.path(), &[]);
    let inspection = inspect(&program, &target);
    let found: Vec<_> = inspection.fatal().map(ToString::to_string).collect();
    assert_eq!(found, ["it needs a shared library that is missing: `libone.so.1`"]);
    // `ldconfig` changes its root, so it needs root, at least in a namespace.
    let words: &[&str] = if rustix::process::geteuid().is_root() { &["-m"] } else { &["-rm"] };
    bench.tool("unshare", &[words, &["/sbin/ldconfig", "-r", "image"]].concat(), &[]);
    let inspection = inspect(&program, &target);
    assert_eq!(inspection.fatal().next(), None);
    let paths: Vec<_> = inspection.libraries.iter().map(|library| library.path.as_path()).collect();
    assert!(paths.contains(&Path::new("/opt/lib/libone.so.1")), "{paths:?}");
}

/// Libraries inherit a search path in the old form, also through other libraries, but not one in the new form.
#[test]
fn an_old_search_path_is_inherited_through_other_libraries() {
    let bench = Bench::new();
    let outcomes = ["-Wl,--disable-new-dtags", "-Wl,--enable-new-dtags"].map(|tags| {
        let library = |name: &str, calls: Option<&str>, flags: &[&str]| {
            let source = match calls {
                Some(inner) => format!("int {inner}(void); int {name}(void) {{ return {inner}(); }}"),
                None => format!("int {name}(void) {{ return 1; }}"),
            };
            let soname = format!("-Wl,-soname,lib{name}.so");
            bench.cc(&format!("{name}/lib{name}.so"), &source, &[&["-shared", "-fPIC", &soname], flags].concat());
        };
        library("third", None, &[]);
        library("second", Some("third"), &["third/libthird.so"]);
        library(
            "first",
            Some("second"),
            &["second/libsecond.so", tags, "-Wl,-rpath,$ORIGIN/../second:$ORIGIN/../third"],
        );
        let flags =
            ["first/libfirst.so", "-Wl,--enable-new-dtags", "-Wl,-rpath,$ORIGIN/first", "-Wl,--allow-shlib-undefined"];
        let program = bench.program("program", &["first"], &flags);
        let starts = starts(&program, &[]);
        assert_eq!(inspected(&program, &[]).fatal().next().is_none(), starts, "{tags}: {:?}", inspected(&program, &[]));
        starts
    });
    assert_eq!(outcomes, [true, false]);
}

#[test]
fn a_library_for_another_machine_is_skipped() {
    let bench = Bench::new();
    let soname = ["-Wl,-soname,libone.so"];
    let library = bench.library("good/libone.so", &["one"], &soname);
    let mut foreign = fs::read(&library).expect("it was compiled");
    foreign[18] = 183;
    bench.write("foreign/libone.so", foreign);
    let rpath = "-Wl,-rpath,$ORIGIN/foreign:$ORIGIN/good";
    let program = bench.program("program", &["one"], &["good/libone.so", rpath]);
    works(&program, &[]);
    let found = inspected(&program, &[]).libraries;
    assert_eq!(found[0].path, library, "{found:?}");
    fs::remove_file(&library).expect("it was made");
    refused(&program, "PL075", 127, &["`libone.so` (`", "/foreign/libone.so` is for another machine)"]);
}

#[test]
fn a_damaged_library_is_named() {
    let bench = Bench::new();
    let library = bench.library("libone.so", &["one"], &["-Wl,-soname,libone.so"]);
    let program = bench.program("program", &["one"], &["libone.so", "-Wl,-rpath,$ORIGIN"]);
    let whole = fs::read(&library).expect("it was compiled");
    bench.write("libone.so", "");
    refused(&program, "PL077", 126, &["libone.so` cannot be loaded: it is no ELF file"]);
    bench.write("libone.so", &whole[..whole.len() / 2]);
    refused(&program, "PL077", 126, &["libone.so` cannot be loaded: it is cut off"]);
}

/// Makes a library with these versions, each with its own function.
fn versioned(bench: &Bench, versions: &[(&str, &str)]) {
    let script: String = versions.iter().map(|(version, name)| format!("{version} {{ global: {name}; }};\n")).collect();
    fs::write(bench.path("versions"), script).expect("the directory can be written");
    let functions: Vec<_> = versions.iter().map(|(_, name)| *name).collect();
    let flags = ["-Wl,--version-script=versions", "-Wl,-soname,libone.so"];
    bench.library("libone.so", &functions, &flags);
}

/// The same program with weak references to these versions, as a linker writes them for optional symbols.
fn weakened(bench: &Bench, program: &[u8], versions: &[&str]) -> PathBuf {
    let mut program = program.to_vec();
    for version in versions {
        let hash = version.bytes().fold(0_u32, |hash, byte| {
            let hash = (hash << 4).wrapping_add(byte.into());
            (hash ^ ((hash & 0xf000_0000) >> 24)) & 0x0fff_ffff
        });
        let at = memchr::memmem::find(&program, &hash.to_le_bytes()).expect("a reference begins with the hash");
        program[at + 4] |= 2;
    }
    bench.write("weak", program)
}

#[test]
fn versions_that_are_missing_are_named() {
    let bench = Bench::new();
    versioned(&bench, &[("ONE_1.9", "one"), ("ONE_1.10", "two"), ("ONE_1.11", "three")]);
    let flags = ["libone.so", "-Wl,-rpath,$ORIGIN"];
    let program = bench.program("program", &["one", "two", "three"], &flags);
    let weak = weakened(&bench, &fs::read(&program).expect("it was compiled"), &["ONE_1.10", "ONE_1.11"]);
    works(&program, &[]);
    works(&weak, &[]);
    versioned(&bench, &[("ONE_1.9", "one")]);
    let library = bench.path("libone.so");
    let texts = [
        "it needs `ONE_1.10`, `ONE_1.11` of `libone.so`, but the library here is older",
        "goes up to `ONE_1.9`",
        library.to_str().expect("text"),
    ];
    refused(&program, "PL076", 126, &texts);
    // The loader only warns of a missing weak version. The program fails when it calls the missing function.
    assert_eq!(inspected(&weak, &[]).fatal().next(), None);
    let output = Command::new(&weak).output().expect("it can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("weak version `ONE_1.10' not found") && said.contains("undefined symbol: two"), "{said}");
    // The loader only warns of a library without versions.
    let plain =
        ["one", "two", "three"].map(|name| format!("int {name}(void) {{ return fputs(\"\", stderr) >= 0; }}\n"));
    let plain = format!("#include <stdio.h>\n{}", plain.concat());
    bench.cc("libone.so", &plain, &["-shared", "-fPIC", "-Wl,-soname,libone.so"]);
    works(&program, &[]);
}

/// The test patches the needed version of the C library, as if the program was built on a newer system.
#[test]
fn a_newer_c_library_is_named() {
    let bench = Bench::new();
    let mut bytes = fs::read(bench.cc("program", ACTION, &[])).expect("it was compiled");
    let at = memchr::memmem::find(&bytes, b"GLIBC_2.34\0").expect("`__libc_start_main` has had it since 2.34");
    bytes[at..at + 10].copy_from_slice(b"GLIBC_9.99");
    let program = bench.write("newer", bytes);
    refused(
        &program,
        "PL076",
        126,
        &[
            "it needs `GLIBC_9.99` of `libc.so.6`, but the library here is older",
            "goes up to `GLIBC_2.",
            "CGO_ENABLED=0",
        ],
    );
}

// Scripts.

/// Asserts that a script is refused with this code and these texts.
#[track_caller]
fn script_refused(bench: &Bench, text: &str, code: &str, status: i32, texts: &[&str]) {
    refused(&bench.write("script", text), code, status, texts);
}

#[test]
fn a_script_without_its_interpreter_is_refused() {
    let bench = Bench::new();
    script_refused(
        &bench,
        "#!/nowhere/python3\n",
        "PL080",
        126,
        &["its interpreter `/nowhere/python3` does not exist", "#!/usr/bin/env python3"],
    );
    // The hint does not recommend the missing interpreter.
    let ended = pipeloop(&[OsStr::new("run"), bench.write("script", "#!/nowhere/env sh\n").as_os_str()], &[], "");
    ended.check(126).says(&["PL080", "hint: put `env` into the image"]);
    assert!(!ended.stderr.contains("/usr/bin/env env"));
    script_refused(&bench, "#!\n/bin/sh\n", "PL086", 126, &["its `#!` line names no interpreter"]);
    let text = bench.write("tool", "#!/bin/sh\n");
    fs::set_permissions(&text, fs::Permissions::from_mode(0o644)).expect("the file can be changed");
    let line = format!("#!{}\n", text.display());
    script_refused(
        &bench,
        &line,
        "PL048",
        126,
        &["its interpreter `", "cannot be started: it is not executable: its mode is 644"],
    );
    script_refused(
        &bench,
        "#!/etc\n",
        "PL048",
        126,
        &["its interpreter `/etc` cannot be started: it cannot be read: it is a directory"],
    );
}

#[test]
fn a_command_that_env_does_not_find_is_named() {
    let bench = Bench::new();
    let script = "#!/usr/bin/env no-such-tool\n";
    script_refused(
        &bench,
        script,
        "PL081",
        127,
        &["`env` cannot find its interpreter `no-such-tool`", "`PATH`, `/usr"],
    );
    script_refused(&bench, "#!/usr/bin/env -S no-such-tool -u\n", "PL081", 127, &["`no-such-tool`"]);
    let words = &["`env` gets the rest of the `#!` line as one argument", "`sh -e`", "#!/usr/bin/env -S sh -e"];
    script_refused(&bench, "#!/usr/bin/env sh -e\n", "PL085", 127, words);
    // The `PATH` of the action counts.
    let greet = "echo '{\"openwhisk\":1}'\n";
    bench.write("bin/my-tool", format!("#!/bin/sh\n{greet}"));
    let path = format!("{}:/usr/bin:/bin", bench.path("bin").display());
    let script = bench.write("script", "#!/usr/bin/env my-tool\n");
    works(&script, &[("PATH", &path)]);
    refused(&script, "PL081", 127, &["`my-tool`"]);
    for line in [
        "#!/usr/bin/env sh",
        "#!/usr/bin/env -S sh -e",
        "#! /usr/bin/env -S A=b sh",
        "#!/bin/sh -e",
        "#!/usr/bin/env -S -i /bin/sh",
    ] {
        works(&bench.write("script", format!("{line}\n{greet}")), &[]);
    }
    // A file on `PATH` that may not be executed is named.
    fs::set_permissions(bench.path("bin/my-tool"), fs::Permissions::from_mode(0o644)).expect("the file can be changed");
    let script = bench.write("script", "#!/usr/bin/env my-tool\n");
    refused_with(&script, &[("PATH", &path)], "PL048", 126, &["my-tool` cannot be started: it is not executable"]);
}

#[test]
fn windows_line_ends_are_refused() {
    let bench = Bench::new();
    let texts = ["CR LF", "`#!/bin/sh\\r`", "sed -i 's/\\r$//'"];
    script_refused(&bench, "#!/bin/sh\r\necho\r\n", "PL082", 126, &texts);
    script_refused(&bench, "#!/usr/bin/env python3\r\n", "PL082", 126, &["CR LF"]);
    script_refused(&bench, "#!/usr/bin/env -S python3\r\n", "PL082", 126, &["CR LF"]);
    // Perl accepts them.
    let perl = bench.write("perl", "#!/usr/bin/perl -w\r\nprint qq({\"openwhisk\":1}\\n);\r\n");
    works(&perl, &[]);
    assert_eq!(inspected(&perl, &[]).defects.len(), 1, "it is worth a warning");
}

#[test]
fn an_interpreter_line_that_the_kernel_cuts_is_refused() {
    let bench = Bench::new();
    let directory = bench.path(&"d".repeat(100));
    fs::create_dir(&directory).expect("the directory can be written");
    let greet = "echo '{\"openwhisk\":1}'\n";
    for (length, is_read) in [(253, true), (254, false), (300, false)] {
        let name = "x".repeat(length - directory.as_os_str().len() - 1);
        let interpreter = directory.join(name);
        symlink("/bin/sh", &interpreter).expect("the directory can be written");
        let script = bench.write("script", format!("#!{}\n{greet}", interpreter.display()));
        if is_read {
            works(&script, &[]);
        } else {
            // The C library would start a shell for it, so only the kernel is asked.
            let texts = ["its `#!` line is too long: the kernel reads at most 255 bytes"];
            let ended = pipeloop(&[OsStr::new("run"), script.as_os_str()], &[], "");
            ended.check(126).says(&["error[PL083]"]).says(&texts);
            assert!(!kernel_accepts(&script), "the kernel reads {length} letters");
        }
    }
    let script = bench.write("script", format!("#!/bin/sh {}\n{greet}", "x".repeat(300)));
    assert!(inspected(&script, &[]).defects.iter().all(|defect| defect.severity() == Severity::Warning));
}

/// Whether `execve` itself accepts a file. Python calls it directly, without the shell fallback of the C library.
fn kernel_accepts(path: &Path) -> bool {
    let output = Command::new("/usr/bin/python3")
        .args(["-c", "import os, sys; os.execve(sys.argv[1], [sys.argv[1]], os.environ)"])
        .arg(path)
        .env_clear()
        .env("PATH", search_path())
        .stdin(std::process::Stdio::null())
        .output()
        .expect("Python is here");
    output.stdout == b"{\"openwhisk\":1}\n"
}

/// Inspection and the kernel accept the same depth of scripts as interpreters.
#[test]
fn nested_scripts_are_refused_at_the_limit_of_the_kernel() {
    let bench = Bench::new();
    let echo = bench.cc("echo", ACTION, &[]);
    let mut interpreter = echo;
    let mut followed = 0;
    for depth in 1..=8 {
        interpreter = bench.write(&format!("script-{depth}"), format!("#!{}\n", interpreter.display()));
        let accepted = kernel_accepts(&interpreter);
        followed += i32::from(accepted);
        let codes: Vec<_> =
            inspected(&interpreter, &[]).fatal().map(pipeloop::artifact::inspect::Defect::code).collect();
        assert_eq!(codes, if accepted { vec![] } else { vec!["PL084"] }, "{depth} scripts");
    }
    assert!((3..8).contains(&followed), "the kernel follows {followed} scripts");
    refused(&interpreter, "PL084", 126, &["deeper than the kernel follows", "script-8"]);
    // A script that is its own interpreter, by the kernel and by `env`.
    let own = bench.path("own");
    bench.write("own", format!("#!{}\n", own.display()));
    refused(&own, "PL084", 126, &["deeper than the kernel follows"]);
    bench.write("bin/circle", "#!/usr/bin/env circle\n");
    let inspection = inspected(&bench.path("bin/circle"), &[("PATH", bench.path("bin").to_str().expect("text"))]);
    assert_eq!(inspection.fatal().next(), None, "inspection ends without a fatal defect");
}

#[test]
fn an_interpreter_is_inspected_like_any_program() {
    let bench = Bench::new();
    let library = bench.library("libone.so", &["one"], &["-Wl,-soname,libone.so"]);
    let interpreter = bench.program("interpreter", &["one"], &["libone.so", "-Wl,-rpath,$ORIGIN"]);
    let line = format!("#!{}\n", interpreter.display());
    works(&bench.write("script", &line), &[]);
    works(&bench.write("script", "#!interpreter\n"), &[]);
    assert_eq!(inspected(&bench.path("script"), &[]).defects[0].code(), "PL087");
    fs::remove_file(library).expect("it was made");
    let texts = [
        "its interpreter `",
        "/interpreter` cannot be started: it needs a shared library that is missing: `libone.so`",
    ];
    script_refused(&bench, &line, "PL075", 127, &texts);
    let path = format!("{}:/usr/bin", bench.directory.path().display());
    let script = bench.write("script", "#!/usr/bin/env interpreter\n");
    refused_with(&script, &[("PATH", &path)], "PL075", 127, &texts);
}

#[test]
fn a_byte_order_mark_is_refused() {
    let bench = Bench::new();
    script_refused(
        &bench,
        "\u{feff}#!/bin/sh\n",
        "PL047",
        126,
        &["a byte-order mark (ef bb bf) precedes its `#!` and hides it from the kernel"],
    );
    let utf16: Vec<u8> = "\u{feff}#!/bin/sh\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    refused(&bench.write("utf16", utf16), "PL044", 126, &["it is text in UTF-16", "PowerShell"]);
}

// Other kinds of uploads.

#[test]
fn source_text_is_refused_with_its_language() {
    let sources = [
        ("Python", "#!/usr/bin/env python3", "import sys\nfor line in sys.stdin:\n    print(line)\n"),
        ("Python", "#!/usr/bin/env python3", "def main(args):\n    return args\n"),
        ("JavaScript", "#!/usr/bin/env node", "function main(params) {\n  return params;\n}\nexports.main = main\n"),
        (
            "TypeScript",
            "#!/usr/bin/env -S deno run",
            "export type Args = { name: string }\nfunction main(a: Args) {}\n",
        ),
        ("PHP", "#!/usr/bin/env php", "<?php\nfunction main(array $args) : array { return $args; }\n"),
        ("Ruby", "#!/usr/bin/env ruby", "def main(args)\n  args\nend\n"),
        ("Perl", "#!/usr/bin/env perl", "use strict;\nmy $x = 1;\nprint $x;\n"),
        ("shell", "#!/bin/sh", "while read line\ndo\n  echo \"$line\"\ndone\n"),
        ("Go", "CGO_ENABLED=0 go build", "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println() }\n"),
        ("Rust", "cargo build", "use std::io;\n\nfn main() {\n    println!();\n}\n"),
        ("C", "gcc -static", "#include <stdio.h>\nint main(void) { return 0; }\n"),
        ("C++", "g++ -static", "#include <iostream>\nint main() { std::cout << 1; }\n"),
        ("Java", "PIPELOOP_COMPILER", "import java.util.Map;\npublic class Main {\n}\n"),
        ("C#", "PIPELOOP_COMPILER", "using System;\nclass Main {}\n"),
        ("Haskell", "ghc", "module Main where\nmain :: IO ()\nmain = return ()\n"),
        ("Swift", "swiftc", "import Foundation\nprint(\"x\")\n"),
    ];
    let bench = Bench::new();
    for (language, hint, text) in sources {
        let name = format!("it is {language} source text");
        refused(&bench.write("source", text), "PL032", 126, &[&name, hint]);
    }
    refused(
        &bench.write("source", "Hello, world.\n"),
        "PL032",
        126,
        &["it is text without a `#!` line", "`Hello, world.`"],
    );
    upload_refused(sources[0].2.as_bytes(), &["it is Python source text", "#!/usr/bin/env python3"]);
}

/// The examples of this repository are real sources.
#[test]
fn the_language_of_each_example_is_recognised() {
    let examples = crate::support::root().join("examples");
    let expected = [
        ("go", "Go"),
        ("c", "C"),
        ("cpp", "C++"),
        ("java", "Java"),
        ("csharp", "C#"),
        ("haskell", "Haskell"),
        ("rust", "Rust"),
    ];
    let extensions = ["go", "c", "cpp", "java", "cs", "hs", "rs"];
    let mut recognised = 0;
    for (directory, language) in expected {
        for entry in fs::read_dir(examples.join(directory)).expect("the examples are there") {
            let path = entry.expect("it can be listed").path();
            if path.extension().is_some_and(|extension| extensions.iter().any(|known| extension == *known)) {
                let found = pipeloop::artifact::inspect::Kind::of(&fs::read(&path).expect("it can be read")).in_words();
                assert_eq!(found, format!("{language} source text"), "{}", path.display());
                recognised += 1;
            }
        }
    }
    assert!(recognised >= expected.len(), "{recognised} examples");
}

#[test]
fn known_formats_are_named_with_a_hint() {
    let bench = Bench::new();
    bench.write("exec", "#!/bin/sh\n");
    bench.write("Main.java", "public class Main { public static void main(String[] a) {} }\n");
    bench.tool("javac", &["Main.java"], &[]);
    bench.tool("jar", &["cf", "main.jar", "Main.class"], &[]);
    bench.tool("tar", &["-cf", "action.tar", "exec"], &[]);
    bench.tool("gzip", &["-k", "exec"], &[]);
    bench.tool("xz", &["-k", "exec"], &[]);
    bench.tool("bzip2", &["-k", "exec"], &[]);
    bench.tool("zstd", &["-q", "exec"], &[]);
    bench.write("exec.7z", b"7z\xbc\xaf\x27\x1c\0\x04rest");
    bench.write("exec.rar", b"Rar!\x1a\x07\x01\0rest");
    bench.write("exec.pdf", b"%PDF-1.7\n%\xe2\xe3\n");
    bench.write("zeros", [0; 10_000]);
    bench.write("page", "\n<!DOCTYPE html>\n<html><title>404</title></html>\n");
    bench.write("pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n");
    let cases = [
        ("Main.class", "PL044", "it is a compiled Java class", "exec java"),
        ("main.jar", "PL044", "it is a Java archive (jar)", "exec java"),
        ("action.tar", "PL044", "it is a tar archive that is not compressed", "gzip action.tar"),
        ("exec.gz", "PL044", "it is a gzip file that does not contain a tar archive, but a script", "tar -czf"),
        ("exec.xz", "PL044", "it is an xz file", "zip -r"),
        ("exec.bz2", "PL044", "it is a bzip2 file", "zip -r"),
        ("exec.zst", "PL044", "it is a zstd file", "zip -r"),
        ("exec.7z", "PL044", "it is a 7z archive", "zip -r"),
        ("exec.rar", "PL044", "it is a rar archive", "zip -r"),
        ("exec.pdf", "PL044", "it is a PDF document", "upload the program"),
        ("zeros", "PL045", "it is zero bytes where a program should begin", "checksum"),
        ("page", "PL045", "it is an HTML page", "download"),
        ("pointer", "PL045", "it is a Git LFS pointer", "git lfs pull"),
    ];
    for (name, code, says, hint) in cases {
        let path = bench.path(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the file can be changed");
        pipeloop(&[OsStr::new("run"), path.as_os_str()], &[], "").check(126).says(&[
            &format!("error[{code}]"),
            says,
            hint,
        ]);
        upload_refused(
            &fs::read(&path).expect("it is there"),
            &["the uploaded code cannot be an action: ", says, hint],
        );
    }
}

#[test]
fn base64_of_base64_is_decoded_and_recognised() {
    let encode = |bytes: &[u8]| base64_simd::STANDARD.encode_to_string(bytes);
    let script = encode(b"#!/bin/sh\necho hello, world\n");
    upload_refused(
        script.as_bytes(),
        &["it is base64 text, encoded once too often; it decodes to a script", "encode it once"],
    );
    let bench = Bench::new();
    let binary = fs::read(bench.cc("program", ACTION, &[])).expect("it was compiled");
    let lines: String =
        encode(&binary).as_bytes().chunks(76).map(|line| format!("{}\n", String::from_utf8_lossy(line))).collect();
    upload_refused(lines.as_bytes(), &["it decodes to an ELF file"]);
    upload_refused(encode(&archive::zip(&[("exec", b"#!/bin/sh\n")])).as_bytes(), &["it decodes to a zip archive"]);
    // Not marked as base64, it is text.
    Proxy::plain().init(&script).check_error(502, &["it is base64 text, encoded once too often"]);
}

#[test]
fn an_archive_without_exec_is_refused_with_its_contents() {
    let script: &[u8] = b"#!/bin/sh\n";
    let below: &[(&str, &[u8])] = &[("hello/exec", script), ("hello/lib/x", b"")];
    for upload in [archive::zip(below), archive::tar_gz(below)] {
        upload_refused(
            &upload,
            &["no file `exec` at its root, but one in the directory `hello`", "cd hello && zip -r"],
        );
    }
    upload_refused(&archive::zip(&[("exec/main.py", b"x")]), &["at its root, but a directory of that name"]);
    let bench = Bench::new();
    symlink("bin/hello", bench.path("exec")).expect("the directory can be written");
    bench.tool("tar", &["-czf", "dead.tar.gz", "exec"], &[]);
    let dead = fs::read(bench.path("dead.tar.gz")).expect("it was packed");
    upload_refused(&dead, &["at its root, but a link to `bin/hello`, which is not a file in the archive"]);
    fs::remove_file(bench.path("exec")).expect("it was made");
    symlink("/bin/sh", bench.path("exec")).expect("the directory can be written");
    bench.tool("tar", &["-czf", "outside.tar.gz", "exec"], &[]);
    upload_refused(
        &fs::read(bench.path("outside.tar.gz")).expect("it was packed"),
        &["links outside the action's directory: `/bin/sh`"],
    );
    upload_refused(
        &archive::zip(&[("exec", b"print('x')\n")]),
        &["cannot start the action `", "it is Python source text"],
    );
    upload_refused(
        &archive::zip(&[("exec", &archive::zip(&[]))]),
        &["it is a zip archive, but the program itself is expected"],
    );
    // A missing mode is set silently.
    fs::remove_file(bench.path("exec")).expect("it was made");
    fs::write(bench.path("exec"), "#!/bin/sh\necho '{\"openwhisk\":1}'\nread a\n")
        .expect("the directory can be written");
    bench.tool("tar", &["-czf", "plain.tar.gz", "exec"], &[]);
    Proxy::plain()
        .init_binary(&fs::read(bench.path("plain.tar.gz")).expect("it was packed"))
        .check(200, &json!({"ok": true}));
}

#[test]
fn a_directory_mounted_noexec_is_named() {
    let bench = Bench::new();
    bench.write("hello", "#!/bin/sh\n");
    bench.tool("tar", &["-czf", "action.tar.gz", "--transform=s/hello/exec/", "hello"], &[]);
    fs::create_dir(bench.path("mounted")).expect("the directory can be written");
    // In a mount namespace, so that the mount ends with it. A user namespace gives root to other users.
    let namespace: &[&str] = if rustix::process::geteuid().is_root() { &["-m"] } else { &["-rm"] };
    let script = "mount -t tmpfs -o noexec none mounted && cp hello mounted/ && exec \"$0\" \"$@\"";
    let check = |args: &[&str]| {
        let output = Command::new("unshare")
            .args(namespace)
            .args(["sh", "-c", script, env!("CARGO_BIN_EXE_pipeloop"), "run"])
            .args(args)
            .current_dir(&bench.directory)
            .output()
            .expect("`unshare` is here");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(126), "{stderr}");
        for text in ["error[PL049]", "mounted", "is mounted `noexec`: nothing in it can be executed", "--workdir"] {
            assert!(stderr.contains(text), "{text:?} is missing in {stderr}");
        }
    };
    check(&["mounted/hello"]);
    check(&["--workdir", "mounted", "action.tar.gz"]);
}

#[test]
fn a_file_that_may_not_be_executed_is_refused() {
    let bench = Bench::new();
    let script = bench.write("script", "#!/bin/sh\n");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o644)).expect("the file can be changed");
    refused(&script, "PL048", 126, &["it is not executable: its mode is 644", "chmod +x"]);
    fs::create_dir(bench.path("directory")).expect("the directory can be written");
    fs::create_dir(bench.path("directory/exec")).expect("the directory can be written");
    pipeloop_in(bench.directory.path(), &["run", "directory"], &[], "")
        .check(1)
        .says(&["error[PL042]", "has no file `exec`"]);
}

/// The causes have the order in which the kernel and the loader check them.
#[test]
fn several_causes_are_reported_at_once() {
    let bench = Bench::new();
    versioned(&bench, &[("ONE_1", "one"), ("ONE_2", "two")]);
    let gone = bench.library("libgone.so", &["gone"], &["-Wl,-soname,libgone.so"]);
    let program = bench.program("program", &["one", "two", "gone"], &["libone.so", "libgone.so", "-Wl,-rpath,$ORIGIN"]);
    versioned(&bench, &[("ONE_1", "one")]);
    fs::remove_file(gone).expect("it was made");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o644)).expect("the file can be changed");
    refused(
        &program,
        "PL048",
        126,
        &[
            "it is not executable",
            "; it needs a shared library",
            "`libgone.so`; it needs `ONE_2` of",
            "chmod +x`; install",
        ],
    );
}

// How much inspection reads.

/// How many bytes this thread has read so far.
fn read_by_this_thread() -> u64 {
    let io = fs::read_to_string("/proc/thread-self/io").expect("the kernel counts");
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("it counts what is read");
    line.parse().expect("a number")
}

/// The cost of an inspection does not depend on the size of the program.
#[test]
fn inspection_reads_no_more_of_a_large_program_than_of_a_small_one() {
    const PADDING: u64 = 100 << 20;
    let bench = Bench::new();
    let program = bench.cc("program", ACTION, &["-static"]);
    let cost = |path: &Path| {
        let before = read_by_this_thread();
        let inspection = inspected(path, &[]);
        assert_eq!(inspection.fatal().next(), None);
        // This includes reading the counter, which costs the same each time.
        read_by_this_thread() - before
    };
    let small = cost(&program);
    let file = fs::OpenOptions::new().append(true).open(&program).expect("the file can be changed");
    file.set_len(file.metadata().expect("it is open").len() + PADDING).expect("the file can be changed");
    let large = cost(&program);
    assert!(large <= small + 4096, "{large} bytes of a large one, {small} of a small one");
    assert!(large < 64 << 10, "{large} bytes are read");
    // A dynamic program has its tables at its end.
    let blob = format!("__asm__(\".data\\n.fill {}, 1, 7\\n.text\\n\");\n{ACTION}", 8 << 20);
    let program = bench.cc("dynamic", &blob, &[]);
    assert!(fs::metadata(&program).expect("it was compiled").len() > 8 << 20);
    let plain = cost(&bench.cc("plain", ACTION, &[]));
    let dynamic = cost(&program);
    assert!(dynamic <= plain + (64 << 10), "{dynamic} bytes, {plain} without the data");
}
