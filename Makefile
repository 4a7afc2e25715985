# resnetd: image classification over HTTP.  `make help` lists the targets.
#
# Variants build side by side in build/<variant>/: release, debug (DEBUG=1), and one per SANITIZER= (address,
# undefined, thread). V=1 shows the commands. CC, CFLAGS, LDFLAGS, PREFIX and DESTDIR are honoured.
# Targets that install packages do so first and build in a second make, which then finds the libraries.

PREFIX  ?= /usr/local
DESTDIR ?=
PYTHON  ?= /usr/bin/python3
CLANG   ?= clang
PORT    ?= 8080
VERSION := 0.1.0

FUZZ_SECONDS ?= 20
PYTEST_FLAGS ?=
BENCH_FLAGS  ?=

comma   := ,
VARIANT := $(if $(SANITIZER),$(subst $(comma),-,$(SANITIZER)),$(if $(DEBUG),debug,release))
B       := build/$(VARIANT)
Q       := $(if $(V),,@)
say      = $(if $(V),,@echo "  $1$2")
# A second make, on every core unless -j was given.
SUBMAKE  = $(MAKE) --no-print-directory $(if $(findstring -j,$(MAKEFLAGS)),,-j$(shell nproc))

PACKAGES := libmicrohttpd libjpeg libpng libcjson openblas nettle
# Looked up once, when the first file is compiled.
PKG_CFLAGS = $(if $(shell pkg-config --exists $(PACKAGES) && echo yes),,$(error libraries are missing: make deps \
	installs them, make run does it by itself))$(eval PKG_CFLAGS := $(shell pkg-config --cflags $(PACKAGES)))$(PKG_CFLAGS)
PKG_LIBS   = $(eval PKG_LIBS := $(shell pkg-config --libs $(PACKAGES)))$(PKG_LIBS)

CFLAGS   ?= -O2 -g
WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wconversion $(if $(CI),-Werror)
ALL_CFLAGS = -std=c11 -D_GNU_SOURCE -DRESNETD_VERSION='"$(VERSION)"' $(CFLAGS) $(WARNINGS) -fno-omit-frame-pointer \
	$(if $(DEBUG),-O0) $(if $(SANITIZER),-fsanitize=$(SANITIZER) -fno-sanitize-recover=all) -pthread
ALL_LDFLAGS = $(LDFLAGS) $(if $(SANITIZER),-fsanitize=$(SANITIZER)) -pthread

MODEL_SOURCES  := $(wildcard model/*.c)
SERVER_SOURCES := $(wildcard server/*.c)
MODEL_OBJECTS  := $(MODEL_SOURCES:%.c=$(B)/%.o)
SERVER_OBJECTS := $(SERVER_SOURCES:%.c=$(B)/%.o)
TESTED_OBJECTS := $(filter-out $(B)/server/main.o,$(SERVER_OBJECTS))
UNIT_SOURCES   := $(wildcard tests/unit/test_*.c)
UNIT_TESTS     := $(UNIT_SOURCES:%.c=$(B)/%)
UNIT_HELPERS   := $(patsubst %.c,$(B)/%.o,$(filter-out $(UNIT_SOURCES),$(wildcard tests/unit/*.c)))
FUZZ_SOURCES   := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_TARGETS   := $(FUZZ_SOURCES:%.c=$(B)/%)
REPLAYS        := $(FUZZ_SOURCES:tests/fuzz/fuzz_%.c=$(B)/tests/fuzz/replay_%)
BENCH_SOURCES  := $(wildcard tests/bench/bench_*.c)
BENCHES        := $(BENCH_SOURCES:%.c=$(B)/%)

# Flags per file: one binary runs anywhere, the kernel tables are chosen at run time.
$(B)/model/kernels_ref.o $(B)/model/kernels_openblas.o $(B)/model/kernels_pool.o: FILE_CFLAGS = -O3
# Pillow's coefficients are computed without fused multiply-adds; ours must round alike.
$(B)/model/resample.o $(B)/model/preprocess.o: FILE_CFLAGS = -O3 -ffp-contract=off
# Checksums would stop nearly every mutated PNG at the door: only the fuzzer's build ignores them.
$(B)/model/image_png.o: FILE_CFLAGS = $(if $(filter fuzz,$(VARIANT)),-DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION)
ifneq (,$(findstring x86_64,$(shell $(CC) -dumpmachine 2>/dev/null)))
AVX512 := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma
isa_objects = $(patsubst %.c,$(B)/%.o,$(wildcard model/kernels_$1.c model/kernels_$1_*.c))
$(call isa_objects,avx2):   FILE_CFLAGS = -O3 -mavx2 -mfma
$(call isa_objects,avx512): FILE_CFLAGS = -O3 $(AVX512)
$(call isa_objects,amx):    FILE_CFLAGS = -O3 $(AVX512) -mavx512bf16 -mamx-tile -mamx-bf16
endif

.PHONY: all help deps deps-test deps-lint deps-fuzz deps-bench run weights test test-run unit unit-run e2e \
	conformance browser check thread fuzz fuzz-run bench bench-binaries lint format install clean FORCE
.DELETE_ON_ERROR:
.SECONDARY:

all: $(B)/resnetd

help:
	@echo "make              build build/release/resnetd (the libraries must be there: make deps)"
	@echo "make run          install libraries if missing, build, serve on port 8080 (PORT=)"
	@echo "make weights      download torchvision's ResNet-50 for ImageNet to weights/"
	@echo "make test         unit and end-to-end tests (installs what they need)"
	@echo "make unit | e2e   one half of them; PYTEST_FLAGS='-k NAME' chooses"
	@echo "make conformance  compare with PyTorch, torchvision and Pillow"
	@echo "make browser      the web page in Chromium"
	@echo "make check        unit and e2e under ASan + UBSan;  make thread: threaded tests under TSan"
	@echo "make fuzz         libFuzzer on every target, FUZZ_SECONDS=$(FUZZ_SECONDS) each"
	@echo "make bench        speed and memory, beside other runtimes (QUICK=1: about four minutes)"
	@echo "make lint | format"
	@echo "make install      to PREFIX=$(PREFIX), under DESTDIR"
	@echo "make deps | deps-test | deps-lint | deps-fuzz | deps-bench   only install packages"
	@echo "make clean        remove build/"
	@echo "Settings: DEBUG=1, SANITIZER=address,undefined, V=1, CC, CFLAGS, LDFLAGS"

# ---------------------------------------------------------------------------------------------- packages

deps:
	@config/install-deps.sh build

deps-test:
	@config/install-deps.sh build test

deps-lint:
	@config/install-deps.sh build lint

deps-fuzz:
	@config/install-deps.sh build fuzz

deps-bench:
	@config/install-deps.sh build bench

# ------------------------------------------------------------------------------------------------- build

# Objects depend on the flags they were built with.
$(B)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(CC) $(ALL_CFLAGS)' | cmp -s - $@ || echo '$(CC) $(ALL_CFLAGS)' > $@

$(B)/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(call say,CC      ,$@)
	$(Q)$(CC) $(ALL_CFLAGS) $(FILE_CFLAGS) $(PKG_CFLAGS) -MMD -MP -c -o $@ $<

$(B)/libmodel.a: $(MODEL_OBJECTS)
	$(call say,AR      ,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $^

$(B)/resnetd: $(SERVER_OBJECTS) $(B)/libmodel.a
	$(call say,LD      ,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(PKG_LIBS) -lm

# embed.c copies these into the binary.
$(B)/server/embed.o: $(wildcard server/page/* server/openapi.json)

# Unit tests link the library and the server's objects but main.o. Allocation goes through wrappers, so
# that a test can let the Nth allocation fail (tests/unit/fail_alloc.h).
WRAP := -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=aligned_alloc,--wrap=strdup,--wrap=mmap
$(B)/tests/unit/test_%: $(B)/tests/unit/test_%.o $(UNIT_HELPERS) $(TESTED_OBJECTS) $(B)/libmodel.a
	$(call say,LD      ,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) $(if $(UNIT_HELPERS),$(WRAP)) -o $@ $^ $(PKG_LIBS) -lcmocka -lm

# A fuzz target is one function over bytes. With libFuzzer (make fuzz) it becomes a fuzzer, with replay.c a
# plain program that runs files, which `make test` uses for the inputs that once failed.
$(B)/tests/fuzz/replay_%: $(B)/tests/fuzz/fuzz_%.o $(B)/tests/fuzz/replay.o $(TESTED_OBJECTS) $(B)/libmodel.a
	$(call say,LD      ,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(PKG_LIBS) -lm

$(B)/tests/fuzz/fuzz_%: $(B)/tests/fuzz/fuzz_%.o $(TESTED_OBJECTS) $(B)/libmodel.a
	$(call say,LD      ,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(PKG_LIBS) -lm

# What the pixel conformance tests talk to: decoded pixels and tensors of many files from one process.
$(B)/tests/conformance/pixels_driver: $(B)/tests/conformance/pixels/pixels_driver.o $(B)/libmodel.a
	$(call say,LD      ,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(PKG_LIBS) -lm

$(B)/tests/bench/bench_%: $(B)/tests/bench/bench_%.o $(TESTED_OBJECTS) $(B)/libmodel.a
	$(call say,LD      ,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(PKG_LIBS) -lm

-include $(MODEL_OBJECTS:.o=.d) $(SERVER_OBJECTS:.o=.d) $(UNIT_TESTS:=.d) $(UNIT_HELPERS:.o=.d) $(FUZZ_TARGETS:=.d) \
	$(BENCHES:=.d) $(B)/tests/conformance/pixels/pixels_driver.d

# --------------------------------------------------------------------------------------------------- run

run: deps
	@$(SUBMAKE) all
	@ls weights/resnet50-*.pth >/dev/null 2>&1 || { \
	  echo "No ImageNet weights in weights/: serving the bundled demo model, which knows 64 everyday classes."; \
	  echo "'make weights' downloads ResNet-50 for ImageNet (98 MB); 'make run' then serves it."; }
	@echo "Try: curl --data-binary @tests/data/coffee.png http://localhost:$(PORT)/v1/classify"
	@exec $(B)/resnetd serve --port $(PORT)

weights:
	@config/install-deps.sh weights
	@config/fetch-weights.sh

# ------------------------------------------------------------------------------------------------- tests

# tests/tally.py runs each part, adds its counts to the file TALLY, and prints the sum as the last line.
export TALLY ?= $(abspath $(B))/tally
TALLY_RUN    := $(PYTHON) tests/tally.py
PYTEST        = RESNETD_BINARY=$(abspath $(B)/resnetd) $(TALLY_RUN) pytest $(PYTHON) $(PYTEST_FLAGS)
# What a sanitizer's report should do: end the process, and say where.
export ASAN_OPTIONS  ?= abort_on_error=0:exitcode=99:detect_stack_use_after_return=1:allocator_may_return_null=1
export UBSAN_OPTIONS ?= print_stacktrace=1
export TSAN_OPTIONS  ?= exitcode=99:second_deadlock_stack=1

test: deps-test
	@$(SUBMAKE) test-run

test-run: $(B)/resnetd $(UNIT_TESTS) $(REPLAYS)
	@$(TALLY_RUN) start
	@status=0; \
	$(TALLY_RUN) unit $(UNIT_TESTS) || status=1; \
	$(TALLY_RUN) replay tests/fuzz/regressions $(REPLAYS) || status=1; \
	$(PYTEST) tests/e2e || status=1; \
	$(TALLY_RUN) total; exit $$status

unit: deps-test
	@$(SUBMAKE) unit-run

unit-run: $(UNIT_TESTS) $(REPLAYS)
	@$(TALLY_RUN) start
	@status=0; \
	$(TALLY_RUN) unit $(UNIT_TESTS) || status=1; \
	$(TALLY_RUN) replay tests/fuzz/regressions $(REPLAYS) || status=1; \
	$(TALLY_RUN) total; exit $$status

e2e: deps-test
	@$(SUBMAKE) all
	@$(TALLY_RUN) start
	@status=0; $(PYTEST) tests/e2e || status=1; $(TALLY_RUN) total; exit $$status

conformance: deps-test
	@$(SUBMAKE) all $(B)/tests/conformance/pixels_driver
	@$(TALLY_RUN) start
	@status=0; $(PYTEST) -s tests/conformance || status=1; $(TALLY_RUN) total; exit $$status

# The web page in a real browser.
browser: deps-test
	@config/install-deps.sh browser
	@$(SUBMAKE) all
	@$(TALLY_RUN) start
	@status=0; $(PYTEST) tests/browser || status=1; $(TALLY_RUN) total; exit $$status

check: deps-test
	@$(SUBMAKE) SANITIZER=address,undefined test-run

# The unit tests that start threads, and the server under load, with ThreadSanitizer.
THREAD_TESTS = $(patsubst %.c,$(B)/%,$(shell grep -lE 'pthread_create|team_start_helpers|threads\.h' $(UNIT_SOURCES)))
thread: deps-test
	@$(SUBMAKE) SANITIZER=thread thread-run

thread-run: $(B)/resnetd $(THREAD_TESTS)
	@$(TALLY_RUN) start
	@status=0; \
	$(TALLY_RUN) unit $(THREAD_TESTS) || status=1; \
	$(PYTEST) tests/e2e/test_http_load.py tests/e2e/test_http_operations.py || status=1; \
	$(TALLY_RUN) total; exit $$status

fuzz: deps-fuzz
	@$(SUBMAKE) VARIANT=fuzz CC=$(CLANG) WARNINGS=-w SANITIZER=fuzzer-no-link,address,undefined fuzz-run

fuzz-run: $(FUZZ_TARGETS)
	@$(TALLY_RUN) start
	@$(TALLY_RUN) fuzz $(FUZZ_SECONDS) $(B)/corpus $(FUZZ_TARGETS); status=$$?; $(TALLY_RUN) total; exit $$status

bench: deps-bench
	@$(SUBMAKE) all bench-binaries
	@B=$(B) $(PYTHON) tests/bench/bench.py $(if $(QUICK),--quick) $(BENCH_FLAGS)

bench-binaries: $(BENCHES)

# -------------------------------------------------------------------------------------------------- lint

C_FILES     = $(wildcard model/*.c model/*.h server/*.c server/*.h tests/unit/*.[ch] tests/fuzz/*.[ch] tests/bench/*.[ch])
# What gcc 12's analyzer guesses wrong too often to be of use; use after free, double free and the like remain.
NOT_ANALYZED = $(addprefix -Wno-analyzer-,malloc-leak file-leak null-dereference null-argument use-of-uninitialized-value)
SHELL_FILES = .ci/run $(wildcard config/*.sh tests/*.sh tests/*/*.sh)

lint: deps-lint
	@$(TALLY_RUN) start
	@status=0; \
	$(TALLY_RUN) check clang-format clang-format --dry-run -Werror $(C_FILES) || status=1; \
	$(TALLY_RUN) check cppcheck cppcheck --quiet --std=c11 --error-exitcode=1 --inline-suppr --suppressions-list=tests/cppcheck.txt \
	  --enable=warning,portability,performance -D__x86_64__ -DRESNETD_VERSION='""' model server || status=1; \
	$(TALLY_RUN) check gcc-analyzer $(MAKE) --no-print-directory VARIANT=analyzer CFLAGS='-O1 -fanalyzer' \
	  WARNINGS='-Werror $(NOT_ANALYZED)' objects || status=1; \
	$(TALLY_RUN) check shellcheck shellcheck $(SHELL_FILES) || status=1; \
	$(TALLY_RUN) check python $(PYTHON) -m flake8 --select=F,E9 --exclude=node_modules tests || status=1; \
	$(TALLY_RUN) total; exit $$status

.PHONY: objects thread-run
objects: $(MODEL_OBJECTS) $(SERVER_OBJECTS)

format:
	clang-format -i $(C_FILES)

# ----------------------------------------------------------------------------------------------- install

# The binary finds its data in ../share/resnetd beside its own folder, so the tree can be moved.
SHARE = $(DESTDIR)$(PREFIX)/share/resnetd
install: $(B)/resnetd
	install -d $(DESTDIR)$(PREFIX)/bin $(SHARE)/models $(SHARE)/labels $(SHARE)/weights
	install -m 755 $(B)/resnetd $(DESTDIR)$(PREFIX)/bin/resnetd
	install -m 644 config/resnetd.json $(SHARE)
	install -m 644 config/models/*.json $(SHARE)/models
	install -m 644 config/labels/*.tsv $(SHARE)/labels
	install -m 644 config/weights/*.safetensors $(SHARE)/weights

clean:
	rm -rf build
