# resnetd: image classification over HTTP.  `make help` lists the targets.
#
# Variants build side by side in build/<variant>/: release, debug (DEBUG=1), address, undefined, thread
# (SANITIZER=). V=1 shows the commands. CC, CFLAGS, LDFLAGS, PREFIX and DESTDIR are honoured.

PREFIX  ?= /usr/local
DESTDIR ?=
PYTHON  ?= /usr/bin/python3
VERSION := 0.1.0
PORT    ?= 8080

VARIANT := $(if $(SANITIZER),$(subst $(comma),-,$(SANITIZER)),$(if $(DEBUG),debug,release))
comma   := ,
B       := build/$(VARIANT)
Q       := $(if $(V),,@)

PACKAGES := libmicrohttpd libjpeg libpng libcjson openblas nettle
# The libraries are looked up when something is compiled, not before `make deps` had its chance.
PKG_CFLAGS = $(shell pkg-config --cflags $(PACKAGES))
PKG_LIBS   = $(shell pkg-config --libs $(PACKAGES))

CFLAGS  ?= -O2 -g
WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wconversion $(if $(CI),-Werror)
ALL_CFLAGS = -std=c11 -D_GNU_SOURCE -DRESNETD_VERSION='"$(VERSION)"' $(CFLAGS) $(WARNINGS) -fno-omit-frame-pointer \
	$(if $(DEBUG),-O0) $(if $(SANITIZER),-fsanitize=$(SANITIZER) -fno-sanitize-recover=all) -pthread
ALL_LDFLAGS = $(LDFLAGS) $(if $(SANITIZER),-fsanitize=$(SANITIZER)) -pthread

MODEL_SOURCES  := $(wildcard model/*.c)
SERVER_SOURCES := $(wildcard server/*.c)
MODEL_OBJECTS  := $(MODEL_SOURCES:%.c=$(B)/%.o)
SERVER_OBJECTS := $(SERVER_SOURCES:%.c=$(B)/%.o)
UNIT_SOURCES   := $(wildcard tests/unit/test_*.c)
UNIT_TESTS     := $(UNIT_SOURCES:%.c=$(B)/%)

# Flags per file: one binary runs anywhere, the kernel tables are chosen at run time.
$(B)/model/kernels_ref.o:      FILE_CFLAGS = -O3
$(B)/model/kernels_openblas.o: FILE_CFLAGS = -O3
$(B)/model/kernels_avx2.o:     FILE_CFLAGS = -O3 -mavx2 -mfma
$(B)/model/kernels_avx512.o:   FILE_CFLAGS = -O3 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma
$(B)/model/kernels_amx.o:      FILE_CFLAGS = -O3 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mamx-tile -mamx-bf16
# Pillow's coefficients are computed without fused multiply-adds; ours must round alike.
$(B)/model/resample.o:         FILE_CFLAGS = -O3 -ffp-contract=off
$(B)/model/preprocess.o:       FILE_CFLAGS = -O3 -ffp-contract=off

.PHONY: all help deps run weights test unit e2e conformance check fuzz bench lint format install clean FORCE
.DELETE_ON_ERROR:

all: $(B)/resnetd

# Objects depend on the flags they were built with.
$(B)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(CC) $(ALL_CFLAGS)' | cmp -s - $@ || echo '$(CC) $(ALL_CFLAGS)' > $@

$(B)/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC      $@")
	$(Q)$(CC) $(ALL_CFLAGS) $(FILE_CFLAGS) $(PKG_CFLAGS) -MMD -MP -c -o $@ $<

$(B)/libmodel.a: $(MODEL_OBJECTS)
	$(if $(V),,@echo "  AR      $@")
	$(Q)rm -f $@ && $(AR) rcs $@ $^

$(B)/resnetd: $(SERVER_OBJECTS) $(B)/libmodel.a
	$(if $(V),,@echo "  LD      $@")
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ $(PKG_LIBS) -lm

# Unit tests link the library and the server's objects but main.o. Allocation goes through wrappers, so
# that a test can let the Nth allocation fail (tests/unit/fail_alloc.h).
WRAP := -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=aligned_alloc,--wrap=strdup
$(B)/tests/unit/test_%: $(B)/tests/unit/test_%.o $(B)/tests/unit/fail_alloc.o $(filter-out $(B)/server/main.o,$(SERVER_OBJECTS)) $(B)/libmodel.a
	$(if $(V),,@echo "  LD      $@")
	$(Q)$(CC) $(ALL_LDFLAGS) $(WRAP) -o $@ $^ $(PKG_LIBS) -lcmocka -lm

-include $(MODEL_OBJECTS:.o=.d) $(SERVER_OBJECTS:.o=.d) $(UNIT_TESTS:=.d)
