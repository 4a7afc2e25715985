/* reply.c - from results and descriptions to JSON. */

#include "reply.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"

static void write_shape(struct json *json, const char *key, const struct shape *shape)
{
    json_open(json, key, '[');
    json_integer(json, NULL, shape->n);
    json_integer(json, NULL, shape->c);
    if (!shape->flat) {
        json_integer(json, NULL, shape->h);
        json_integer(json, NULL, shape->w);
    }
    json_close(json, ']');
}

static void write_prediction(struct json *json, const struct labels *labels, const struct prediction *prediction)
{
    const size_t class = (size_t)prediction->class_index;

    json_open(json, NULL, '{');
    json_unsigned(json, "class", class);
    if (class < labels->count) {
        json_string(json, "id", labels->ids[class]);
        json_string(json, "label", labels->labels[class]);
    }
    json_digits(json, "probability", prediction->probability, 6);
    json_close(json, '}');
}

void reply_write_result(struct json *json, const struct model *model, const struct classify_result *result, bool stages,
                        int indent)
{
    const struct plan *plan = model_plan_shapes(result->plan);

    json_line(json, indent);
    json_open(json, "image", '{');
    json_string(json, "format", image_format_name(result->format));
    json_integer(json, "width", result->width);
    json_integer(json, "height", result->height);
    json_integer(json, "orientation", result->orientation);
    json_close(json, '}');

    json_line(json, indent);
    json_open(json, "input", '{');
    json_string(json, "size", input_size_name(result->input_size));
    json_bool(json, "scaled", result->scaled);
    write_shape(json, "shape", &result->input);
    json_close(json, '}');

    json_line(json, indent);
    json_open(json, "predictions", '[');
    for (int i = 0; i < result->prediction_count; i++) {
        json_line(json, indent + 16); /* under the first one */
        write_prediction(json, model_labels(model), &result->predictions[i]);
    }
    json_close(json, ']');

    if (!stages)
        return;
    json_line(json, indent);
    json_open(json, "stages", '[');
    for (size_t i = 0; i < plan->row_count; i++) {
        const struct plan_row *row = &plan->rows[i];
        if (!plan_row_is_stage(row))
            continue;
        json_line(json, indent + 11);
        json_open(json, NULL, '{');
        json_string(json, "name", row->call->path);
        json_string(json, "type", module_reported_type(row->call->module));
        write_shape(json, "shape", &row->shape);
        json_close(json, '}');
    }
    json_close(json, ']');
}

void reply_write_timing(struct json *json, const struct reply_timing *timing)
{
    json_open(json, "timing_ms", '{');
    json_decimals(json, "queue", clock_ms(timing->queue_ns), 3);
    json_decimals(json, "decode", clock_ms(timing->decode_ns), 3);
    json_decimals(json, "preprocess", clock_ms(timing->preprocess_ns), 3);
    json_decimals(json, "inference", clock_ms(timing->inference_ns), 3);
    json_decimals(json, "total", clock_ms(timing->total_ns), 3);
    json_close(json, '}');
}

void reply_server_timing(const struct reply_timing *timing, char *out, size_t size)
{
    (void)snprintf(out, size,
                   "queue;dur=%.3f, decode;dur=%.3f, preprocess;dur=%.3f, inference;dur=%.3f, total;dur=%.3f",
                   clock_ms(timing->queue_ns), clock_ms(timing->decode_ns), clock_ms(timing->preprocess_ns),
                   clock_ms(timing->inference_ns), clock_ms(timing->total_ns));
}

void reply_write_error(struct json *json, enum api_error error, const char *message)
{
    json_open(json, "error", '{');
    json_string(json, "code", api_error_info(error)->code);
    json_string(json, "message",
                error == API_INTERNAL ? "the server failed; its log has the request_id and the reason" : message);
    json_close(json, '}');
}

static void write_floats(struct json *json, const char *key, const float *values, int count)
{
    json_open(json, key, '[');
    for (int i = 0; i < count; i++)
        json_digits(json, NULL, (double)values[i], 6);
    json_close(json, ']');
}

static void write_modules(struct json *json, const struct network *network)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);

    if (out) {
        network_print(network, out);
        if (fclose(out) == 0)
            json_string_n(json, "modules", text, size);
        else
            json->failed = true;
    } else {
        json->failed = true;
    }
    free(text);
}

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

void reply_write_model(struct json *json, const struct model *model, bool is_default, bool more)
{
    const struct network *network = model_network(model);
    const struct kernels *kernels = model_kernels(model);
    const struct labels *labels = model_labels(model);
    const struct input_spec *input = &network->input;
    const int indent = more ? 1 : 12;

    json_line(json, more ? 0 : 12);
    json_open(json, NULL, '{');
    json_string(json, "name", model_name(model));
    json_string(json, "type", network->class_name);
    json_bool(json, "default", is_default);
    json_integer(json, "classes", network->classes);
    json_unsigned(json, "parameters", model_parameters(model));
    json_line(json, indent);
    json_open(json, "input", '{');
    json_integer(json, "channels", input->channels);
    write_floats(json, "mean", input->mean, input->channels);
    write_floats(json, "std", input->std, input->channels);
    json_string(json, "size", input_size_name(input->size));
    json_integer(json, "fit", input->fit);
    json_integer(json, "resize", input->resize);
    json_integer(json, "crop", input->crop);
    json_close(json, '}');
    json_line(json, indent);
    json_open(json, "weights", '{');
    json_string(json, "file", file_name(model_weights_path(model)));
    json_string(json, "format", model_weights_format(model));
    json_string(json, "sha256", model_weights_sha256(model));
    json_unsigned(json, "packed_bytes", model_packed_bytes(model));
    json_close(json, '}');
    json_line(json, indent);
    json_string(json, "kernels", kernels->name);
    json_string(json, "precision", kernels->precision);
    json_string(json, "arithmetic", kernels->arithmetic);
    if (more) {
        json_line(json, indent);
        write_modules(json, network);
        json_line(json, indent);
        json_open(json, "labels", '[');
        for (size_t i = 0; i < labels->count; i++)
            json_string(json, NULL, labels->labels[i]);
        json_close(json, ']');
    }
    json_close(json, '}');
}

void reply_write_summary(struct json *json, const char *name, const struct plan *plan)
{
    const struct plan_totals totals = plan_totals(plan);

    json_open(json, NULL, '{');
    json_string(json, "model", name);
    json_open(json, "input", '{');
    write_shape(json, "shape", &plan->input);
    json_close(json, '}');
    json_line(json, 1);
    json_open(json, "rows", '[');
    for (size_t i = 0; i < plan->row_count; i++) {
        const struct plan_row *row = &plan->rows[i];
        if (!plan_row_in_summary(row))
            continue;
        json_line(json, 9);
        json_open(json, NULL, '{');
        json_string(json, "name", row->call->path);
        json_string(json, "type", module_type_name(row->call->module->type));
        write_shape(json, "shape", &row->shape);
        json_unsigned(json, "parameters", row->parameters);
        json_unsigned(json, "multiply_adds", row->multiply_adds);
        json_close(json, '}');
    }
    json_close(json, ']');
    json_line(json, 1);
    json_open(json, "totals", '{');
    json_unsigned(json, "parameters", plan->parameters);
    json_unsigned(json, "trainable_parameters", plan->trainable_parameters);
    json_unsigned(json, "multiply_adds", plan->multiply_adds);
    json_decimals(json, "input_mib", totals.input_mib, 2);
    json_decimals(json, "forward_backward_mib", totals.forward_backward_mib, 2);
    json_decimals(json, "parameters_mib", totals.parameters_mib, 2);
    json_decimals(json, "total_mib", totals.total_mib, 2);
    json_close(json, '}');
    json_close(json, '}');
}
