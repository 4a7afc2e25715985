/* test_metrics.c - what is counted is what is printed, in the form that Prometheus reads. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../server/metrics.h"

static const char *const routes[] = {"other", "/v1/classify"};

static char *written(const struct metrics *metrics)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    assert_non_null(out);
    metrics_write(metrics, out);
    assert_int_equal(fclose(out), 0);
    return text;
}

static bool has_line(const char *text, const char *line)
{
    const size_t length = strlen(line);

    for (const char *at = text; (at = strstr(at, line)); at++)
        if ((at == text || at[-1] == '\n') && at[length] == '\n')
            return true;
    return false;
}

static void counters(void **state)
{
    (void)state;
    struct metrics metrics = {.routes = routes, .route_count = 2};
    char *text;

    metrics_count_request(&metrics, 1, 200, 100, 10, 1000000);
    metrics_count_request(&metrics, 1, 200, 100, 10, 1000000);
    metrics_count_request(&metrics, 1, METRICS_STATUS_ABORTED, 5, 0, 1);
    metrics_count_request(&metrics, 0, 404, 0, 7, 1);
    metrics_count_request(&metrics, 0, 418, 0, 0, 1);
    metrics_count_image(&metrics, API_OK);
    metrics_count_image(&metrics, API_IMAGE_TRUNCATED);
    text = written(&metrics);
    assert_true(has_line(text, "resnetd_requests_total{route=\"/v1/classify\",status=\"200\"} 2"));
    assert_true(has_line(text, "resnetd_requests_total{route=\"/v1/classify\",status=\"499\"} 1"));
    assert_true(has_line(text, "resnetd_requests_total{route=\"other\",status=\"404\"} 1"));
    assert_true(has_line(text, "resnetd_requests_total{route=\"other\",status=\"other\"} 1"));
    assert_null(strstr(text, "status=\"500\""));
    assert_true(has_line(text, "resnetd_images_total{outcome=\"ok\"} 1"));
    assert_true(has_line(text, "resnetd_images_total{outcome=\"image_truncated\"} 1"));
    assert_true(has_line(text, "resnetd_received_bytes_total 205"));
    assert_true(has_line(text, "resnetd_sent_bytes_total 27"));
    assert_true(has_line(text, "resnetd_request_seconds_count 5"));
    assert_non_null(strstr(text, "\nprocess_resident_memory_bytes "));
    assert_null(strstr(text, "\nprocess_resident_memory_bytes 0\n"));
    free(text);
}

static void histograms_are_cumulative(void **state)
{
    (void)state;
    struct metrics metrics = {.routes = routes, .route_count = 2};
    char *text;

    metrics_observe(&metrics, STAGE_DECODE, 100000); /* on a bound: inside */
    metrics_observe(&metrics, STAGE_DECODE, 100001);
    metrics_observe(&metrics, STAGE_DECODE, 3000000);
    metrics_observe(&metrics, STAGE_DECODE, 60000000000); /* past the last bound */
    text = written(&metrics);
    assert_true(has_line(text, "resnetd_stage_seconds_bucket{stage=\"decode\",le=\"0.0001\"} 1"));
    assert_true(has_line(text, "resnetd_stage_seconds_bucket{stage=\"decode\",le=\"0.00025\"} 2"));
    assert_true(has_line(text, "resnetd_stage_seconds_bucket{stage=\"decode\",le=\"0.0025\"} 2"));
    assert_true(has_line(text, "resnetd_stage_seconds_bucket{stage=\"decode\",le=\"0.005\"} 3"));
    assert_true(has_line(text, "resnetd_stage_seconds_bucket{stage=\"decode\",le=\"10\"} 3"));
    assert_true(has_line(text, "resnetd_stage_seconds_bucket{stage=\"decode\",le=\"+Inf\"} 4"));
    assert_true(has_line(text, "resnetd_stage_seconds_count{stage=\"decode\"} 4"));
    assert_true(has_line(text, "resnetd_stage_seconds_sum{stage=\"decode\"} 60.003200001"));
    assert_true(has_line(text, "resnetd_stage_seconds_count{stage=\"inference\"} 0"));
    free(text);
}

static void labels_are_escaped(void **state)
{
    (void)state;
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    assert_non_null(out);
    metrics_write_label(out, "a\"b\\c\nd");
    assert_int_equal(fclose(out), 0);
    assert_string_equal(text, "a\\\"b\\\\c\\nd");
    free(text);
}

static void errors_are_complete(void **state)
{
    (void)state;
    for (int i = 1; i < API_ERROR_COUNT; i++) {
        const struct api_error_info *info = api_error_info((enum api_error)i);
        assert_in_range(info->status, 400, 503);
        assert_true(info->code[0] != '\0');
        assert_true((info->status == 503) == (info->retry_after_s > 0));
        for (int j = 1; j < i; j++)
            assert_string_not_equal(info->code, api_error_info((enum api_error)j)->code);
    }
    assert_int_equal(api_error_from_status(RN_OK), API_OK);
    for (int i = 1; i < RN_STATUS_COUNT; i++)
        assert_int_not_equal(api_error_from_status((enum rn_status)i), API_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counters),
        cmocka_unit_test(histograms_are_cumulative),
        cmocka_unit_test(labels_are_escaped),
        cmocka_unit_test(errors_are_complete),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
