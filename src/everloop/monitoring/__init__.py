"""Monitor endpoints: compare the prediction log with a version's baseline, and record findings about drift and metrics.

Importing this package loads only the standard library. The module of a name is imported when the name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everloop.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from everloop.monitoring.alarm_budget import (
        AlarmBudget as AlarmBudget,
        benjamini_hochberg as benjamini_hochberg,
        budget_for as budget_for,
    )
    from everloop.monitoring.baseline import (
        Baseline as Baseline,
        ReferenceMetric as ReferenceMetric,
        build_baseline as build_baseline,
        find_baseline as find_baseline,
        keep_baseline as keep_baseline,
        load_baseline as load_baseline,
    )
    from everloop.monitoring.drift import check_drift as check_drift, compare_window as compare_window
    from everloop.monitoring.drift_report import (
        DriftReport as DriftReport,
        baseline_of as baseline_of,
        report_drift as report_drift,
    )
    from everloop.monitoring.measures.distances import (
        chi_square as chi_square,
        chi_square_test as chi_square_test,
        distance_between as distance_between,
        hellinger as hellinger,
        jensen_shannon as jensen_shannon,
        ks as ks,
        psi as psi,
        total_variation as total_variation,
        wasserstein as wasserstein,
    )
    from everloop.monitoring.performance.attribution_over_time import (
        attribution_over_time as attribution_over_time,
        permutation_importance as permutation_importance,
    )
    from everloop.monitoring.performance.challenger_comparison import (
        VersionComparison as VersionComparison,
        compare_versions as compare_versions,
    )
    from everloop.monitoring.performance.confidence_estimation import ConfidenceEstimator as ConfidenceEstimator
    from everloop.monitoring.performance.custom_metrics import (
        RowMetric as RowMetric,
        cost_metric as cost_metric,
        custom_metric as custom_metric,
    )
    from everloop.monitoring.performance.estimates_over_time import (
        estimate_periods as estimate_periods,
        estimates_over_time as estimates_over_time,
    )
    from everloop.monitoring.performance.group_fairness import (
        fairness_over_time as fairness_over_time,
        measure_fairness as measure_fairness,
    )
    from everloop.monitoring.performance.harm import Harm as Harm, estimate_harm as estimate_harm
    from everloop.monitoring.performance.label_coverage import (
        label_coverage as label_coverage,
        label_coverage_by_age as label_coverage_by_age,
    )
    from everloop.monitoring.performance.loss_estimation import LossEstimator as LossEstimator
    from everloop.monitoring.performance.metrics_over_time import (
        measure_over_time as measure_over_time,
        performance_over_time as performance_over_time,
    )
    from everloop.monitoring.performance.performance_checks import (
        Measured as Measured,
        check_performance as check_performance,
        measure_labelled as measure_labelled,
        performance_by as performance_by,
        usual_metric as usual_metric,
    )
    from everloop.monitoring.performance.performance_estimates import (
        EstimateCheck as EstimateCheck,
        PerformanceEstimate as PerformanceEstimate,
    )
    from everloop.monitoring.quality.quality_checks import check_quality as check_quality
    from everloop.monitoring.quality.quality_result import QualityResult as QualityResult
    from everloop.monitoring.quality.table_quality import quality_of_table as quality_of_table
    from everloop.monitoring.stream_monitoring import (
        StreamReport as StreamReport,
        watch_stream as watch_stream,
        watch_table as watch_table,
    )
    from everloop.monitoring.subject_shift import SubjectShift as SubjectShift, measure_shifts as measure_shifts

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "alarm_budget": ["AlarmBudget", "benjamini_hochberg", "budget_for"],
        "baseline": [
            "Baseline",
            "ReferenceMetric",
            "build_baseline",
            "find_baseline",
            "keep_baseline",
            "load_baseline",
        ],
        "measures.distances": [
            "chi_square",
            "chi_square_test",
            "distance_between",
            "hellinger",
            "jensen_shannon",
            "ks",
            "psi",
            "total_variation",
            "wasserstein",
        ],
        "drift": ["check_drift", "compare_window"],
        "drift_report": ["DriftReport", "baseline_of", "report_drift"],
        "performance.attribution_over_time": ["attribution_over_time", "permutation_importance"],
        "performance.challenger_comparison": ["VersionComparison", "compare_versions"],
        "performance.confidence_estimation": ["ConfidenceEstimator"],
        "performance.custom_metrics": ["RowMetric", "cost_metric", "custom_metric"],
        "performance.estimates_over_time": ["estimate_periods", "estimates_over_time"],
        "performance.group_fairness": ["fairness_over_time", "measure_fairness"],
        "performance.harm": ["Harm", "estimate_harm"],
        "performance.label_coverage": ["label_coverage", "label_coverage_by_age"],
        "performance.loss_estimation": ["LossEstimator"],
        "performance.metrics_over_time": ["measure_over_time", "performance_over_time"],
        "performance.performance_checks": [
            "Measured",
            "check_performance",
            "measure_labelled",
            "performance_by",
            "usual_metric",
        ],
        "performance.performance_estimates": ["EstimateCheck", "PerformanceEstimate"],
        "quality.quality_checks": ["check_quality"],
        "quality.quality_result": ["QualityResult"],
        "quality.table_quality": ["quality_of_table"],
        "stream_monitoring": ["StreamReport", "watch_stream", "watch_table"],
        "subject_shift": ["SubjectShift", "measure_shifts"],
    },
)
