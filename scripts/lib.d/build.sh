# shellcheck shell=bash
# The release binaries of this repository, built where they can be.

# What a script needs, and the packages of the workspace in which it is. Always at least these three: cargo
# builds what they share with the features that they ask for together, and would build it anew for others.
BINARIES=(millrace-manager millrace-nf millrace)
PACKAGES=(millrace millrace-nfs millrace-web)

# set_up_machine: packages and toolchain, where we may install them.
set_up_machine() {
    find_cargo
    if ((EUID == 0)); then
        if [[ -z $CARGO ]] && have_binaries; then
            note "no cargo here: using the binaries already built in $BIN_DIR"
            return
        fi
        run_child - "$REPO/scripts/setup" || die "setting up this machine failed (see above)"
        find_cargo
    fi
}

have_binaries() {
    local name
    for name in "${BINARIES[@]}"; do [[ -x $BIN_DIR/$name ]] || return 1; done
}

# build: cargo's own progress is shown. Without cargo the binaries that are there are taken.
build() {
    BIN_DIR=$(target_dir)/release
    set_up_machine
    if [[ -z $CARGO ]]; then
        have_binaries || die "no cargo here and no binaries in $BIN_DIR: run \`sudo ./scripts/setup\` first"
        return
    fi
    if [[ ! -w $REPO || (-e $(target_dir) && ! -w $(target_dir)) ]] && have_binaries; then
        note "$(target_dir) is not ours to write: using the binaries already built there"
        return
    fi
    local -a features=()
    if ! pkg-config --exists libdpdk 2>/dev/null; then
        [[ ${BACKEND-} != dpdk ]] || die "libdpdk-dev is not installed: run sudo ./scripts/setup"
        note "libdpdk-dev is not installed: building without the dpdk back end"
        features=(--no-default-features)
    fi
    step "building (cargo build --release; some minutes the first time)"
    local started=$SECONDS
    run_child - "${CARGO_AS[@]}" env "PATH=$CARGO_PATH" "$CARGO" build --release \
        --manifest-path "$REPO/Cargo.toml" "${PACKAGES[@]/#/--package=}" --bins "${features[@]}" ||
        die "the build failed (see above)"
    note "built in $((SECONDS - started)) s"
}
