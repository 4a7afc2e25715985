/* make_weights.h - small networks from a C string, and weights for any network as a temporary safetensors file, so
 * that tests of the engine need no files of their own. */

#ifndef RESNETD_TESTS_MAKE_WEIGHTS_H
#define RESNETD_TESTS_MAKE_WEIGHTS_H

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../model/network.h"

/* A description around `modules`, the inside of the list. To be freed. */
static inline char *description_of(const char *modules, int channels)
{
    char *json = NULL;
    const int size =
        asprintf(&json,
                 "{\"name\": \"net\", \"class\": \"Net\", \"input\": {\"channels\": %d, \"mean\": [%s], "
                 "\"std\": [%s], \"resize\": 40, \"crop\": 32}, \"modules\": [%s]}",
                 channels, channels == 1 ? "0.5" : "0.5, 0.4, 0.3", channels == 1 ? "0.25" : "0.2, 0.3, 0.4", modules);

    assert_true(size > 0);
    return json;
}

static inline struct network network_of(const char *modules, int channels)
{
    char *json = description_of(modules, channels);
    struct network network;
    struct rn_error error;

    if (network_parse(json, strlen(json), "test", "", &network, &error) != RN_OK)
        fail_msg("%s", error.text);
    free(json);
    return network;
}

/* `bytes` in a new file whose name replaces `path`; to be unlinked. */
enum { TEST_PATH_SIZE = 64 };

static inline void write_temporary(char path[TEST_PATH_SIZE], const void *bytes, size_t size)
{
    int fd;

    (void)snprintf(path, TEST_PATH_SIZE, "/tmp/resnetd-test-XXXXXX");
    fd = mkstemp(path);
    assert_true(fd >= 0);
    for (size_t at = 0; at < size;) {
        const ssize_t wrote = write(fd, (const char *)bytes + at, size - at);
        assert_true(wrote > 0);
        at += (size_t)wrote;
    }
    (void)close(fd);
}

/* What is wrong with the weights; NULL for nothing. */
struct weights_change {
    const char *drop;    /* this tensor is missing */
    const char *add;     /* a tensor of this name, shape [1], that the network does not know */
    const char *reshape; /* this tensor's first dimension is one larger */
    const char *poison;  /* this tensor's last element is NaN */
    const char *negate;  /* this tensor's values are below -1 */
};

struct weights_writer {
    FILE *header, *data;
    char *header_text, *data_bytes;
    size_t header_size, data_size, written;
    uint32_t seed;
    struct weights_change change;
};

static inline bool is_named(const char *wanted, const char *name)
{
    return wanted && strcmp(wanted, name) == 0;
}

/* One tensor of values in [middle - spread, middle + spread). */
static inline void write_tensor(struct weights_writer *w, const char *path, const char *field, int dims,
                                const int *shape, double middle, double spread)
{
    char name[200];
    size_t count = 1;

    (void)snprintf(name, sizeof name, "%s.%s", path, field);
    if (is_named(w->change.drop, name))
        return;
    fprintf(w->header, "%s\"%s\": {\"dtype\": \"F32\", \"shape\": [", w->written ? ", " : "", name);
    for (int d = 0; d < dims; d++) {
        const int extent = shape[d] + (d == 0 && is_named(w->change.reshape, name));
        fprintf(w->header, "%s%d", d ? ", " : "", extent);
        count *= (size_t)extent;
    }
    fprintf(w->header, "], \"data_offsets\": [%zu, %zu]}", w->written, w->written + count * sizeof(float));
    w->written += count * sizeof(float);
    for (size_t i = 0; i < count; i++) {
        float value;
        w->seed = w->seed * 1664525u + 1013904223u;
        value = (float)(middle + spread * ((double)(w->seed >> 8) / 8388608.0 - 1.0));
        if (is_named(w->change.negate, name))
            value = -2.0f - value;
        if (is_named(w->change.poison, name) && i + 1 == count)
            value = strtof("nan", NULL);
        (void)fwrite(&value, sizeof value, 1, w->data);
    }
}

/* Weights that `network` accepts, but for `change` (may be NULL), in a temporary file. Values keep the activations
 * of deep networks near 1. */
static inline void make_weights(const struct network *network, uint32_t seed, const struct weights_change *change,
                                char path[TEST_PATH_SIZE])
{
    struct weights_writer w = {.seed = seed};
    FILE *file;
    char *bytes;
    size_t size;

    if (change)
        w.change = *change;
    w.header = open_memstream(&w.header_text, &w.header_size);
    w.data = open_memstream(&w.data_bytes, &w.data_size);
    assert_true(w.header && w.data);
    fputc('{', w.header);
    for (size_t i = 0; i < network->call_count; i++) {
        const struct call *call = &network->calls[i];
        const struct module *m = call->module;
        if (call->kind != CALL_LEAF)
            continue;
        if (m->type == MODULE_CONV2D) {
            const struct conv_params *p = &m->conv.params;
            const int shape[4] = {p->out, p->in / p->groups, p->kernel[0], p->kernel[1]};
            const double fan_in = (double)shape[1] * shape[2] * shape[3];
            write_tensor(&w, call->path, "weight", 4, shape, 0.0, 1.7 / (fan_in < 3 ? 1.7 : __builtin_sqrt(fan_in)));
            if (m->conv.bias)
                write_tensor(&w, call->path, "bias", 1, shape, 0.0, 0.5);
        } else if (m->type == MODULE_LINEAR) {
            const int shape[2] = {m->linear.out, m->linear.in};
            write_tensor(&w, call->path, "weight", 2, shape, 0.0, 1.7 / __builtin_sqrt((double)shape[1]));
            if (m->linear.bias)
                write_tensor(&w, call->path, "bias", 1, shape, 0.0, 0.5);
        } else if (m->type == MODULE_BATCHNORM2D) {
            write_tensor(&w, call->path, "weight", 1, &m->batchnorm.features, 1.0, 0.4);
            write_tensor(&w, call->path, "bias", 1, &m->batchnorm.features, 0.0, 0.4);
            write_tensor(&w, call->path, "running_mean", 1, &m->batchnorm.features, 0.0, 0.4);
            write_tensor(&w, call->path, "running_var", 1, &m->batchnorm.features, 1.0, 0.5);
        }
    }
    if (!w.written && !w.change.add)
        w.change.add = "no.parameters"; /* a file must hold a tensor */
    if (w.change.add)
        fprintf(w.header, "%s\"%s\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [%zu, %zu]}",
                w.written ? ", " : "", w.change.add, w.written, w.written + sizeof(float));
    fputc('}', w.header);
    (void)fclose(w.header);
    if (w.change.add)
        (void)fwrite(&(float){1.0f}, sizeof(float), 1, w.data);
    (void)fclose(w.data);

    file = open_memstream(&bytes, &size);
    assert_non_null(file);
    for (int i = 0; i < 8; i++)
        fputc((int)((uint64_t)w.header_size >> 8 * i & 0xff), file);
    (void)fwrite(w.header_text, 1, w.header_size, file);
    (void)fwrite(w.data_bytes, 1, w.data_size, file);
    (void)fclose(file);
    write_temporary(path, bytes, size);
    free(bytes);
    free(w.header_text);
    free(w.data_bytes);
}

#endif
