/* cli_image.c - resnetd classify, tensor and infer: what the server does with an image, without HTTP. */

#include "cli.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "errors.h"
#include "json.h"
#include "npy.h"
#include "reply.h"

/* A tensor file is the operator's own: only absurd ones are refused. */
static const uint64_t MAX_TENSOR_BYTES = (uint64_t)8 << 30;

/* ---------------------------------------------------------------------------------------------- classify */

static void print_json(struct json *json)
{
    char *text = json_take(json, NULL);

    if (text)
        fputs(text, stdout);
    else
        fputs("resnetd: out of memory for the answer\n", stderr);
    free(text);
}

/* One element of the array that --json prints: what the server would reply, and the file's name. */
static void print_json_result(const char *path, const struct model *model, const struct classify_result *result)
{
    const struct reply_timing timing = {
        .decode_ns = result->decode_ns,
        .preprocess_ns = result->preprocess_ns,
        .inference_ns = result->inference_ns,
        .total_ns = result->decode_ns + result->preprocess_ns + result->inference_ns,
    };
    struct json json = {0};

    json_open(&json, NULL, '{');
    json_string(&json, "file", path);
    json_string(&json, "model", model_name(model));
    reply_write_result(&json, model, result, true, 1);
    json_line(&json, 1);
    reply_write_timing(&json, &timing);
    json_close(&json, '}');
    print_json(&json);
}

static void print_json_error(const char *path, const struct rn_error *error)
{
    struct json json = {0};

    json_open(&json, NULL, '{');
    json_string(&json, "file", path);
    reply_write_error(&json, api_error_from_status(error->code), error->text);
    json_close(&json, '}');
    print_json(&json);
}

static void print_result(const char *path, const struct model *model, const struct classify_result *result)
{
    const struct labels *labels = model_labels(model);
    char shape[SHAPE_TEXT_SIZE];

    printf("%s: %s %dx%d, input %s (%s%s), %.1f ms\n", path, image_format_name(result->format), result->width,
           result->height, shape_text(&result->input, shape), input_size_name(result->input_size),
           result->scaled ? ", scaled" : "",
           clock_ms(result->decode_ns + result->preprocess_ns + result->inference_ns));
    for (int i = 0; i < result->prediction_count; i++) {
        const struct prediction *prediction = &result->predictions[i];
        size_t index = (size_t)prediction->class_index;
        printf("  %6.2f%%  %s (%d%s%s)\n", prediction->probability * 100,
               index < labels->count ? labels->labels[index] : "class", prediction->class_index,
               index < labels->count ? ", " : "", index < labels->count ? labels->ids[index] : "");
    }
}

static enum rn_status classify_file(const struct cli *cli, const struct cli_engine *engine, const char *path,
                                    struct rn_error *error)
{
    int classes = model_network(engine->model)->classes;
    struct classify_result result;
    struct classify_request request;
    uint8_t *data;
    size_t size;
    enum rn_status status = cli_read_file(path, cli->config.limits.max_body_bytes, &data, &size, error);

    if (status != RN_OK)
        return status;
    request = cli_request(cli, data, size);
    if (request.top_k == 0)
        request.top_k = classes < 5 ? classes : 5;
    status = classify_image(engine->model, engine->pass, &request, &result, error);
    free(data);
    if (status != RN_OK)
        return status;
    (cli->json ? print_json_result : print_result)(path, engine->model, &result);
    classify_result_free(engine->model, &result);
    return RN_OK;
}

int cli_classify(struct cli *cli)
{
    struct cli_engine engine;
    struct rn_error error;
    int status = CLI_OK;

    if (cli_engine_open(cli, &engine, &error) != RN_OK)
        return cli_fail(NULL, &error);
    if (cli->top_k > model_network(engine.model)->classes) {
        status = cli_usage("--top-k is at most the model's %d classes", model_network(engine.model)->classes);
        cli_engine_close(&engine);
        return status;
    }
    if (!cli->json && cli->config.default_note)
        fprintf(stderr, "resnetd: %s\n", cli->config.default_note);
    for (int i = 0; i < cli->file_count; i++) {
        if (cli->json)
            fputs(i == 0 ? "[" : ",\n ", stdout);
        if (classify_file(cli, &engine, cli->files[i], &error) == RN_OK)
            continue;
        status = cli_fail(cli->files[i], &error);
        if (cli->json)
            print_json_error(cli->files[i], &error);
    }
    if (cli->json)
        puts("]");
    cli_engine_close(&engine);
    return status;
}

/* ------------------------------------------------------------------------------------- tensor and infer */

/* Copy [n, channels, pixels] into [n, pixels, channels], or back when `to_nchw`. */
static void transpose(const float *in, float *out, int n, int channels, size_t pixels, bool to_nchw)
{
    for (size_t image = 0; image < (size_t)n; image++) {
        const float *from = in + image * pixels * (size_t)channels;
        float *to = out + image * pixels * (size_t)channels;
        for (size_t p = 0; p < pixels; p++)
            for (size_t c = 0; c < (size_t)channels; c++) {
                size_t nhwc = p * (size_t)channels + c, nchw = c * pixels + p;
                to[to_nchw ? nchw : nhwc] = from[to_nchw ? nhwc : nchw];
            }
    }
}

/* Write to --output, and leave no half-written file behind. */
static enum rn_status write_array(const struct cli *cli, const float *data, int dims, const int *shape,
                                  struct rn_error *error)
{
    FILE *out = strcmp(cli->output, "-") ? fopen(cli->output, "wb") : stdout;
    enum rn_status status;

    if (!out)
        return rn_fail(error, RN_ERR_IO, "cannot write %s: %s", cli->output, strerror(errno));
    status = npy_write(out, data, dims, shape, error);
    if (out == stdout)
        return status;
    if (fclose(out) != 0 && status == RN_OK)
        status = rn_fail(error, RN_ERR_IO, "cannot write %s: %s", cli->output, strerror(errno));
    if (status != RN_OK)
        remove(cli->output);
    return status;
}

/* The network's input from a file's bytes: an image, or an array [N, C, H, W]. `tensor` is NHWC, the caller's. */
static enum rn_status read_tensor(const struct cli *cli, const struct network *network, const uint8_t *data,
                                  size_t size, float **tensor, struct shape *shape, struct rn_error *error)
{
    struct npy npy;
    struct classify_request request = cli_request(cli, data, size);
    enum rn_status status;

    *tensor = NULL;
    if (image_sniff(data, size) != IMAGE_FORMAT_UNKNOWN || size < 6 || memcmp(data, "\x93NUMPY", 6) != 0)
        return classify_tensor(network, &request, tensor, shape, error);
    status = npy_parse(data, size, &npy, error);
    if (status != RN_OK)
        return status;
    if (npy.dims != 4 || npy.shape[1] != network->input.channels) {
        status = rn_fail(error, RN_ERR_BAD_REQUEST, "the array must be [N, %d, H, W]", network->input.channels);
    } else if (!(*tensor = malloc(npy.elements * sizeof(float)))) {
        status = rn_fail_nomem(error, "the tensor");
    } else {
        *shape = (struct shape){.n = npy.shape[0], .c = npy.shape[1], .h = npy.shape[2], .w = npy.shape[3]};
        transpose(npy.data, *tensor, shape->n, shape->c, (size_t)shape->h * (size_t)shape->w, false);
    }
    npy_free(&npy);
    return status;
}

int cli_tensor(struct cli *cli)
{
    struct network network = {0};
    struct rn_error error;
    struct shape shape;
    uint8_t *data = NULL;
    float *tensor = NULL, *nchw = NULL;
    size_t size;
    enum rn_status status;

    if (!cli->output)
        return cli_usage("tensor needs --output FILE");
    status = cli_read_network(cli, &network, &error);
    if (status != RN_OK)
        return cli_fail(NULL, &error);
    status = cli_read_file(cli->files[0], cli->config.limits.max_body_bytes, &data, &size, &error);
    if (status == RN_OK) {
        struct classify_request request = cli_request(cli, data, size);
        status = classify_tensor(&network, &request, &tensor, &shape, &error);
    }
    if (status == RN_OK && !(nchw = malloc(shape_elements(&shape) * sizeof(float))))
        status = rn_fail_nomem(&error, "the tensor");
    if (status == RN_OK) {
        int sizes[] = {shape.n, shape.c, shape.h, shape.w};
        transpose(tensor, nchw, shape.n, shape.c, (size_t)shape.h * (size_t)shape.w, true);
        status = write_array(cli, nchw, 4, sizes, &error);
    }
    free(nchw);
    free(tensor);
    free(data);
    network_free(&network);
    return status == RN_OK ? CLI_OK : cli_fail(cli->files[0], &error);
}

/* Every module call with its output's shape, in order of execution. */
static void print_stages(const struct plan *plan)
{
    struct json json = {0};

    json_open(&json, NULL, '[');
    for (size_t i = 0; i < plan->row_count; i++) {
        const struct plan_row *row = &plan->rows[i];
        if (!row->call->module)
            continue;
        json_open(&json, NULL, '{');
        json_string(&json, "name", row->call->path);
        json_string(&json, "type", module_reported_type(row->call->module));
        json_bool(&json, "function", row->call->module->functional);
        json_open(&json, "shape", '[');
        json_integer(&json, NULL, row->shape.n);
        json_integer(&json, NULL, row->shape.c);
        if (!row->shape.flat) {
            json_integer(&json, NULL, row->shape.h);
            json_integer(&json, NULL, row->shape.w);
        }
        json_close(&json, ']');
        json_close(&json, '}');
    }
    json_close(&json, ']');
    json_bytes(&json, "\n", 1);
    print_json(&json);
}

static enum rn_status infer(const struct cli *cli, const struct cli_engine *engine, const float *tensor,
                            const struct shape *input, struct rn_error *error)
{
    const struct model_plan *plan = NULL;
    const struct plan *shapes;
    const struct shape *output;
    float *logits = NULL;
    enum rn_status status = model_plan_acquire(engine->model, input->n, input->h, input->w, &plan, error);

    if (status != RN_OK)
        return status;
    status = pass_prepare(engine->pass, plan, error);
    shapes = model_plan_shapes(plan);
    output = &shapes->values[shapes->network->output_value];
    if (status == RN_OK && cli->output && !(logits = malloc(shape_elements(output) * sizeof(float))))
        status = rn_fail_nomem(error, "the logits");
    if (status == RN_OK && logits) {
        int sizes[] = {output->n, output->c, output->h, output->w};
        memcpy(pass_input(engine->pass, plan), tensor, shape_elements(input) * sizeof(float));
        model_forward(engine->model, plan, engine->pass, logits);
        status = write_array(cli, logits, output->flat ? 2 : 4, sizes, error);
    }
    if (status == RN_OK && cli->stages)
        print_stages(shapes);
    free(logits);
    model_plan_release(engine->model, plan);
    return status;
}

int cli_infer(struct cli *cli)
{
    struct cli_engine engine;
    struct rn_error error;
    struct shape shape;
    uint8_t *data = NULL;
    float *tensor = NULL;
    size_t size;
    enum rn_status status;

    if (!cli->output && !cli->stages)
        return cli_usage("infer needs --output FILE, --stages or both");
    if (cli_engine_open(cli, &engine, &error) != RN_OK)
        return cli_fail(NULL, &error);
    status = cli_read_file(cli->files[0], MAX_TENSOR_BYTES, &data, &size, &error);
    if (status == RN_OK)
        status = read_tensor(cli, model_network(engine.model), data, size, &tensor, &shape, &error);
    if (status == RN_OK)
        status = infer(cli, &engine, tensor, &shape, &error);
    free(tensor);
    free(data);
    cli_engine_close(&engine);
    return status == RN_OK ? CLI_OK : cli_fail(cli->files[0], &error);
}
