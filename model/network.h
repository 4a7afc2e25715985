/* network.h - a network as data: the module tree of a description file (config/models/NAME.json), with
 * the names and types that PyTorch gives its modules, so that a state dict maps one to one.
 *
 * description file -> [module tree -> trace of calls] -> plan (plan.h) for one input size
 *                                                    -> program (program.h) with packed weights
 *
 * A struct network is immutable once read and may be shared by threads. */

#ifndef RESNETD_MODEL_NETWORK_H
#define RESNETD_MODEL_NETWORK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "preprocess.h"
#include "status.h"

enum module_type {
    MODULE_CONV2D,
    MODULE_BATCHNORM2D,
    MODULE_RELU,
    MODULE_MAXPOOL2D,
    MODULE_AVGPOOL2D,
    MODULE_ADAPTIVE_AVGPOOL2D,
    MODULE_LINEAR,
    MODULE_FLATTEN,
    MODULE_DROPOUT,
    MODULE_SOFTMAX,
    MODULE_SEQUENTIAL,
    MODULE_BASIC_BLOCK, /* torchvision's BasicBlock */
    MODULE_BOTTLENECK,  /* torchvision's Bottleneck */
    MODULE_RESIDUAL,    /* Dive into Deep Learning's Residual: biased 3x3 convolutions, 1x1 conv3 */
    MODULE_TYPE_COUNT
};

/* Two-dimensional extents: index 0 is height, 1 is width. */
struct conv_params {
    int in, out; /* channels; both multiples of groups */
    int kernel[2], stride[2], padding[2], dilation[2];
    int groups;
};

struct pool_params {
    int kernel[2], stride[2], padding[2], dilation[2];
    bool ceil_mode;
    bool count_include_pad; /* AvgPool2d */
    int divisor_override;   /* AvgPool2d; 0 for none */
};

struct module {
    char *name; /* PyTorch's attribute name within the parent: "conv1", "0" */
    enum module_type type;
    bool functional; /* a function called in forward(), not a registered module: PyTorch does not print it */
    bool frozen;     /* requires_grad = False: counted as non-trainable in summaries */
    bool inplace;    /* ReLU, Dropout: only for printing */
    union {
        struct {
            struct conv_params params;
            bool bias;
        } conv;
        struct {
            int features;
            double eps;
            double momentum;
        } batchnorm;
        struct pool_params pool;
        struct {
            int output[2];
        } adaptive; /* -1: as the input (PyTorch's None) */
        struct {
            int in, out;
            bool bias;
        } linear;
        struct {
            double p;
        } dropout;
        struct {
            int dim;
            bool dim_given;
        } softmax;
    };
    enum module_type
        stage; /* of a MODULE_SEQUENTIAL made from "blocks": N, the type of its blocks; else MODULE_SEQUENTIAL */
    struct module *children; /* Sequential and the block types */
    size_t child_count;
};

/* One step of forward(), in execution order. Values are numbered; value 0 is the network's input. */
enum call_kind {
    CALL_LEAF,  /* `module` is a leaf: output = module(input) */
    CALL_ADD,   /* output = input + other; `module` is NULL */
    CALL_BLOCK, /* `module` has children and has just finished: output is input (a row of a table, no work) */
};

struct call {
    enum call_kind kind;
    const struct module *module;
    char *path; /* "layer1.0.conv1": the state dict's prefix of the module; the block's for CALL_ADD */
    int input, other, output;
    int depth; /* 0 for a top-level module */
};

struct network {
    char *name;        /* "resnet50" */
    char *class_name;  /* what PyTorch prints for the whole: "ResNet" */
    char *labels_path; /* resolved against the description's folder; NULL when the description names none */
    struct input_spec input;
    struct module root; /* a Sequential of the top-level modules */
    struct call *calls;
    size_t call_count;
    int value_count; /* values are 0 .. value_count - 1 */
    int output_value;
    int classes;          /* width of the output: out of the last Linear or Conv2d */
    bool ends_in_softmax; /* the output already is probabilities */
};

/* Read and check a description. Unknown keys, unknown types, repeated names and sizes that do not fit
 * their predecessor are refused with the module's path. `out` is zeroed on failure.
 * Returns RN_OK, RN_ERR_IO, RN_ERR_DESCRIPTION, RN_ERR_NOMEM. */
RN_MUST_CHECK enum rn_status network_read(const char *path, struct network *out, struct rn_error *error);

/* The same from memory; `where` stands for the file in messages, `folder` resolves the labels' path. */
RN_MUST_CHECK enum rn_status network_parse(const char *json, size_t size, const char *where, const char *folder,
                                           struct network *out, struct rn_error *error);

/* Free what the struct owns and zero it. NULL and zeroed structs are fine. */
void network_free(struct network *network);

/* "Conv2d", "Bottleneck", ... */
const char *module_type_name(enum module_type type);

/* The type to report for a module: a stage of blocks reports its blocks' type. */
const char *module_reported_type(const struct module *module);

/* Write the module tree as PyTorch's print(model) does, ending in a newline. */
void network_print(const struct network *network, FILE *out);

/* Parameters (weights and biases, not running statistics) of the module itself, without children. */
uint64_t module_parameters(const struct module *module);

#endif
